"""New weights of the blocks of residuals, between the iterations of a run."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import cast

import numpy as np

from kormos.session.replacement import Replacement
from kormos.types import Matrix

if TYPE_CHECKING:
    from kormos.objective.base import FlatObjective
    from kormos.objective.functions.residuals import ResidualObjective

# Function of the iteration and of the residuals of each block.
Weights = Callable[[int, dict[str, Matrix]], Mapping[str, float]]


class Reweigh(Replacement):
    """Gives the blocks of `least_squares` new weights as the residuals change.

    Weights that follow the residuals keep one block, the boundary of a
    differential equation for instance, from being neglected for another
    (Wang, Teng and Perdikaris 2021, SIAM J. Sci. Comput. 43), and can let later
    times wait for earlier ones (Wang, Sankaran and Perdikaris 2024, Comput.
    Methods Appl. Mech. Eng. 421).

    Args:
        fn: function `(iteration, residuals)` that returns a dict from a
            block's name to its weight, zero or more. `residuals` is a dict of
            arrays `(rows, k)`, without weights. Blocks that it does not name
            have the weight 1.
        every: the number of iterations between two calls.

    Example:

    ```python
    def equal_shares(iteration, residuals):
        squares = {k: (r**2).mean() for k, r in residuals.items()}
        return {k: 1 / (s + 1e-12) for k, s in squares.items()}

    kormos.least_squares(
        residual_fn,
        model.trainable_variables,
        callbacks=[kormos.callbacks.Reweigh(equal_shares, every=50)],
    )
    ```
    """

    def __init__(self, fn: Weights, every: int):
        super().__init__(every)
        if not callable(fn):
            raise ValueError(
                "Argument `fn` of a `Reweigh` must be a function `(iteration, "
                f"residuals)` that returns weights. Received: {fn!r}"
            )
        self._fn = fn

    def check(self, objective: FlatObjective) -> None:
        if not hasattr(objective, "reweigh"):
            raise ValueError(
                "A `Reweigh` weighs blocks of residuals, as "
                "`kormos.least_squares` has them. Received: a loss without "
                "residuals"
            )

    def replace(self, objective: FlatObjective, iteration: int) -> None:
        blocks = cast("ResidualObjective", objective)
        residuals = blocks.residuals(blocks.initial_position())
        weights = self._fn(iteration, residuals)
        is_known = isinstance(weights, Mapping) and set(weights) <= set(
            blocks.names
        )
        numbers = [float(w) for w in weights.values()] if is_known else []
        if not (is_known and np.isfinite(numbers).all() and min(numbers) >= 0):
            raise ValueError(
                "The function of a `Reweigh` must return a dict of weights, "
                "zero or more, by the names of blocks: "
                f"{', '.join(map(repr, blocks.names))}. Received: {weights!r}"
            )
        blocks.reweigh(dict(weights))
