"""A callback that changes the weights of blocks of residuals during a run."""

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
    """Changes the weights of the blocks of `least_squares` with the residuals.

    Weights that follow the residuals prevent that one block, such as the
    boundary conditions of a differential equation, is neglected in favour of
    another (Wang, Teng and Perdikaris 2021, SIAM J. Sci. Comput. 43). They can
    also delay the fit at later times until it is good at earlier ones (Wang,
    Sankaran and Perdikaris 2024, Comput. Methods Appl. Mech. Eng. 421).

    Args:
        fn: Function `(iteration, residuals)` that returns a dict that maps the
            name of a block to its weight, which must not be negative.
            `residuals` is a dict of arrays of shape `(rows, k)`, without
            weights. Blocks that are not in the dict have the weight 1.
        every: Integer, the number of iterations between two calls.

    Raises:
        ValueError: If `fn` is not a function, or `every` is not 1 or more. A
            fit raises it for a loss without residuals, and if `fn` returns
            something other than a dict of weights by the names of blocks.

    Example:

    ```python
    v = keras.Variable([0.5, 0.5])

    def equal_shares(iteration, residuals):
        squares = {k: (r**2).mean() for k, r in residuals.items()}
        return {k: 1 / (s + 1e-12) for k, s in squares.items()}

    def residual_fn():
        return {"line": v[0] + 2 * v[1] - 3, "circle": 10 * (v**2 - 1)}

    kormos.least_squares(
        residual_fn,
        [v],
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
                "A `Reweigh` changes the weights of blocks of residuals, "
                "which only `kormos.least_squares` has. Received: a loss "
                "without residuals"
            )

    def carry(
        self, before: FlatObjective, objective: FlatObjective, iteration: int
    ) -> None:
        del before
        self.replace(objective, iteration)

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
