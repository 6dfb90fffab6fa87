"""The outcome that a solver returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from kormos.solvers.solver_state import SolverState
    from kormos.solvers.surroundings import Evaluate
    from kormos.solvers.surroundings import Hessian
    from kormos.types import Vector


@dataclasses.dataclass
class Outcome:
    """How one run of one method ended.

    Attributes:
        status: one of the constants of `statuses`; `None` when the run was
            stopped from outside.
        theta: the final point, float64 array of shape `(size,)`.
        loss: the loss there.
        test: name of the test that fired, or `None`.
        value: the tested quantity, or `None`.
        threshold: what it was compared with, or `None`.
        detail: details in the method's own words.
        raw: the wrapped library's own result, or `None`.
        is_polished: whether the point is the best although its loss may be
            above the lowest one, by less than the loss's rounding.
        is_penalized: whether the method minimizes the loss plus a penalty of
            its own, so that a point with a lower loss is no better.
        kept_loss: the loss at the point as the variables round it; `None` if
            that is the same.
        findings: sentences of what was checked at the end, with figures.
        evaluate: function of a point to the loss and the gradient there, or
            `None` for a method without gradients.
        state: the `SolverState` that a later run can continue from, or `None`.
        hessian: function of a point to the Hessian of the method's model there,
            or `None`.
        multipliers: the multipliers of each constraint, arrays `(m,)`, or
            `None` for a method without them.
        below: a lower point to continue from, where the end is a saddle point;
            else `None`.
        settle: function that assigns the model's other variables as they are at
            the point, to be called before the point is assigned; or `None`.
    """

    status: str | None
    theta: Any
    loss: float
    test: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str = ""
    raw: Any = None
    is_polished: bool = False
    is_penalized: bool = False
    kept_loss: float | None = None
    findings: str = ""
    evaluate: Evaluate | None = None
    state: SolverState | None = None
    hessian: Hessian | None = None
    multipliers: list[Any] | None = None
    below: Vector | None = None
    settle: Callable[[], object] | None = None
