"""The weights and the scales of the blocks of residuals in a loss."""

import copy
import numbers
from collections.abc import Sequence
from typing import Any
from typing import Self

import numpy as np

from kormos.types import Vector


class BlockFactors:
    """The factors of the losses of residual blocks.

    Args:
        names: the names of the blocks.
        loss_weights: dict from a block's name to its weight in the loss.
        f_scale: the size above which residuals have less influence than in
            least squares: a number, or a dict from a block's name to one.
        reduction: `"mean"` or `"sum"`.
    """

    def __init__(
        self,
        names: Sequence[str],
        loss_weights: dict[str, float] | None,
        f_scale: float | dict[str, float],
        reduction: str,
    ) -> None:
        self._names = names
        self._weights = _by_block("loss_weights", loss_weights, names)
        self._is_mean = reduction == "mean"
        self._f_scales = _by_block("f_scale", f_scale, names)

    def rescaled(self, f_scale: float | dict[str, float]) -> Self:
        """The same factors with another `f_scale`."""
        other = copy.copy(self)
        other._f_scales = _by_block("f_scale", f_scale, self._names)
        return other

    def reweighted(self, loss_weights: dict[str, float] | None) -> Self:
        """The same factors with other `loss_weights`."""
        other = copy.copy(self)
        other._weights = _by_block("loss_weights", loss_weights, self._names)
        return other

    def divisors(self, counts: Vector) -> Vector:
        """The divisors of the sums of the blocks' losses.

        Args:
            counts: the number of residuals of each block.
        """
        return counts if self._is_mean else np.ones_like(counts)

    def term_factors(self, counts: Vector) -> Vector:
        """The term factors of a `ResidualProgram`.

        Args:
            counts: the number of residuals of each block.
        """
        factors = self._weights / self.divisors(counts)
        return np.concatenate([factors, self._f_scales])


def _by_block(
    name: str, value: float | dict[str, float] | None, names: Sequence[str]
) -> Vector:
    """A number for each block.

    Args:
        name: the argument that is given.
        value: a number, or a dict from a block's name to one. Blocks that it
            does not name have a one.
        names: the names of the blocks.
    """
    if value is None:
        return np.ones(len(names))
    if not isinstance(value, dict):
        value = dict.fromkeys(names, value)
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise ValueError(
            f"Argument `{name}` must have the names of residual blocks, "
            f"{list(names)}. Received: {unknown}"
        )
    found: list[Any] = [value.get(n, 1.0) for n in names]
    for number in found:
        if (
            not isinstance(number, numbers.Real)
            or not 0 < float(number) < np.inf
        ):
            raise ValueError(
                f"Argument `{name}` must be a positive number, or a dict of "
                f"these by block. Received: {number!r}"
            )
    return np.array(found, dtype="float64")
