"""Losses of rows of data, which a function computes from Keras variables."""

from collections.abc import Callable
from typing import NoReturn

from kormos.objective.compiled import refuse_gauss_newton
from kormos.objective.functions.residuals import ResidualObjective
from kormos.types import Tensor


class RowLossObjective(ResidualObjective):
    """A sum or mean of the losses of rows that a function returns.

    It is an objective of residuals, except that each of them adds itself to the
    loss, and not its square. The arguments are those of `ResidualObjective`,
    with the function in place of `residual_fn`.
    """

    _fn_name = "loss_fn"
    # The derivatives of losses are of the size of the loss.
    _loss_unit = 1.0

    def gauss_newton(self) -> NoReturn:
        refuse_gauss_newton("losses of rows")

    def by_row(self) -> ResidualObjective:
        """The values of the function, in float64, as residuals.

        Raises:
            Float64Error: if the function cannot be computed in float64.
        """
        return ResidualObjective(
            self._function.fn,
            self.variables,
            self.data,
            reduction="sum",
            precision="float64",
        )

    def _measure(self) -> Callable[[Tensor], Tensor]:
        return lambda losses: losses
