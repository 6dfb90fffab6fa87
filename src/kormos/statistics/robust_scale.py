"""Estimates the scale of a robust loss from the residuals."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from kormos import optimizers
from kormos.objective.functions import robust
from kormos.objective.functions.residuals import ResidualObjective
from kormos.optimizers.stage import Stage
from kormos.session.session import Session
from kormos.session.task import Task
from kormos.session.trace_observer import TraceObserver
from kormos.solvers.rejections import or_else

# The most fits that estimate `f_scale="auto"`. Our choice: they agree after a
# few, and more would only cost time.
_MOST_ROUNDS = 10
# They agree if no spread changes by more than this part. Our choice: a smaller
# value would cost fits, and change a robust loss by almost nothing.
_AGREE = 0.01


def estimated_scales(
    make_objective: Callable[..., ResidualObjective],
    data: Any,
    precision: str | None,
    loss: str,
    stages: Sequence[Stage],
    bounds: Any,
) -> float | dict[str, float]:
    """The `f_scale` of each block for `f_scale="auto"`.

    Args:
        make_objective: function `(data, loss=..., precision=...)` that makes an
            objective.
        data: the data of the fit.
        precision: the precision of the fit.
        loss: the robust loss.
        stages: the stages of the fit, whose epochs limit each fit here.
        bounds: see `least_squares`.

    Returns:
        A dict from a block's name to its scale; or 1 for the loss `"linear"`,
        which has no scale.
    """
    if loss == "linear":
        return 1.0
    trial = make_objective(data, loss="soft_l1", precision=precision)
    most = max(stage.epochs or 0 for stage in stages)
    factor = robust.TUKEY_DEVIATIONS if loss == "tukey" else 1.0
    spreads = _spreads_of_fit(trial, most, bounds)
    return {name: factor * spread for name, spread in spreads.items()}


def _spreads_of_fit(
    objective: ResidualObjective, most: int, bounds: Any
) -> dict[str, float]:
    """The spread of each block's residuals after a fit by `"soft_l1"`.

    The fit needs a scale itself, so it is repeated until both agree.

    Args:
        objective: an objective with the loss `"soft_l1"`.
        most: the most iterations of each fit of it.
        bounds: see `least_squares`.
    """

    def spreads() -> dict[str, float]:
        start = objective.initial_position()
        nothing = dict.fromkeys(objective.names, np.array([np.nan]))
        residuals = or_else(nothing, objective.residuals, start)
        # If most residuals are zero, any positive scale can be used.
        return {k: robust.spread(r) or 1e-8 for k, r in residuals.items()}

    found = spreads()
    if not np.isfinite(list(found.values())).all():
        # The fit itself will end at its start, and report it.
        return dict.fromkeys(found, 1.0)
    for _ in range(_MOST_ROUNDS):
        objective.rescale(found)
        optimizer = optimizers.get("lm")
        (stage,) = optimizer.stages(most)
        Session(
            optimizer,
            [stage],
            Task(optimizer, lambda settings: (objective, None), bounds),
            TraceObserver(is_quiet=True),
        )()
        before, found = found, spreads()
        if all(abs(found[k] - before[k]) <= _AGREE * before[k] for k in found):
            break
    return found
