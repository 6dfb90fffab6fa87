"""Losses that are sums of squares, or of robust losses, of residuals."""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from kormos import backend
from kormos.arithmetic.vectors import NARROW
from kormos.arithmetic.vectors import to_array
from kormos.backend.common import as_tensor
from kormos.data.points import Points
from kormos.data.points import with_columns
from kormos.float64.choice import check_precision
from kormos.float64.choice import decide
from kormos.float64.choice import starts_in_float64
from kormos.objective.arguments import ProgramArguments
from kormos.objective.base import FlatObjective
from kormos.objective.functions import robust
from kormos.objective.functions.block_factors import BlockFactors
from kormos.objective.functions.grouped_data import GroupedData
from kormos.objective.functions.kept import kept
from kormos.objective.functions.missing_data import refuse_missing
from kormos.objective.functions.residual_blocks import ResidualFunction
from kormos.objective.functions.residual_program import ResidualProgram
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.objective.layout import Packing
from kormos.objective.units import largest
from kormos.objective.units import unit_for
from kormos.processes import ALONE
from kormos.processes import processes_of
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector


class ResidualObjective(FlatObjective):
    """A sum or mean of losses of the residuals that a function returns.

    Args:
        residual_fn: see `kormos.least_squares`.
        variables: list of the `keras.Variable`s to optimize.
        data: arrays for `residual_fn`, in any structure, or `None`.
        loss: the name of one of `robust.LOSSES`.
        f_scale: the size above which residuals have less influence than in
            least squares: a number, or a dict from a block's name to one.
        loss_weights: dict from a block's name to its weight in the loss.
        reduction: `"mean"` or `"sum"`.
        batch_size: the most rows in memory at once.
        with_jacobian: whether to cut chunks so small that the derivatives of
            all their residuals fit into memory.
        precision: `None`, `"float64"` or `"auto"`, as in
            `kormos.least_squares`.
        nan_policy: `"raise"` or `"omit"`, as in `kormos.least_squares`.
        data_name: the name of the argument `data` in errors.

    Attributes:
        names: the names of the blocks.
        loss: the name of the loss.
        reduction: `"mean"` or `"sum"`.
        grouped: the data.
    """

    program: ResidualProgram
    # The name of the function in errors.
    _fn_name = "residual_fn"
    # The latest point that `_sums` evaluated, and its result.
    _latest: tuple[Vector, Vector] | None
    # The matrix of the present data whose users evaluate the loss, if any.
    _matrix: HostGaussNewton | None

    def __init__(
        self,
        residual_fn: Callable[..., Structure],
        variables: Sequence[keras.Variable],
        data: Structure = None,
        loss: str = "linear",
        f_scale: float | dict[str, float] = 1.0,
        loss_weights: dict[str, float] | None = None,
        reduction: str = "mean",
        batch_size: int | None = None,
        with_jacobian: bool = True,
        precision: str | None = None,
        nan_policy: str = "raise",
        data_name: str = "data",
    ) -> None:
        check_precision(precision)
        packing = Packing(variables)
        points = Points(data, data_name, packing.widest, nan_policy == "omit")
        self._kept = kept(
            residual_fn,
            packing.variables,
            (self._fn_name, points.layout),
            lambda: _checked(
                residual_fn, packing.variables, data, points, self._fn_name
            ),
        )
        self._function = self._kept.function
        self.names = self._function.names
        self.loss, self.reduction = loss, reduction
        self.program = self._compiled(None)
        self.unused_variables = self._function.unused_variables
        self._factors = BlockFactors(
            self.names, loss_weights, f_scale, reduction
        )
        self._batch_size = batch_size
        self._with_jacobian = with_jacobian
        # Without data, all processes compute the same residuals, which must not
        # be added up.
        owner = packing.variables
        processes = ALONE if data is None else processes_of(owner)
        self.arguments = ProgramArguments([], processes=processes)
        self.refresh()
        self.replace(data)
        self.has_float64 = decide(precision, self._prepare_float64)
        if self.has_float64 and starts_in_float64(precision, packing.dtypes):
            self.go_on_in_float64()
        # Data that are too large for float32 may be right for float64, if the
        # fit can continue in float64.
        function = self._kept.in_float64 if self.has_float64 else self._function
        refuse_missing(self, function)

    def _compiled(self, dtype: str | None) -> ResidualProgram:
        """Compiles the function, or takes what was compiled before."""
        return self._kept.made(
            dtype,
            lambda function, packing: ResidualProgram(
                packing, function, self._measure()
            ),
            lambda program, function, packing: program.for_function(
                packing, function
            ),
            self.loss,
        )

    def _measure(self) -> Callable[[Tensor], Tensor]:
        """The loss of each residual, over its `f_scale`."""
        return robust.of_residuals(self.loss)

    def _prepare_float64(self) -> None:
        # Refuse a function that fails in float64 now, not during the fit.
        _ = self._kept.in_float64

    def _go_on_in_float64(self) -> None:
        self._function = self._kept.in_float64
        self.program = self._compiled("float64")
        self.__dict__.pop("_loss_unit", None)
        self.refresh()
        self.replace(self.data)

    def refresh(self) -> None:
        super().refresh()
        self._latest = None

    def replace(self, data: Structure) -> None:
        """Replaces the data.

        Args:
            data: arrays in the same structure.
        """
        self.grouped = GroupedData(self._function, data)
        self._matrix = None
        widths = [
            term.width * self.size if self._with_jacobian else None
            for term in self.program.terms
        ]
        is_first = self.processes.is_first
        devices = backend.replicas(self.variables)
        self.arguments = dataclasses.replace(
            self.arguments,
            chunks=self.grouped.chunks(
                self._batch_size, widths, is_first, devices
            ),
            multipliers=len(self.names),
        )
        counts = self.grouped.counts(is_first)
        self._counts = self.processes.sum(counts, "numbers of residuals")
        self._weigh()

    @property
    def block_factors(self) -> Vector:
        """The factor of each block's sum in the loss."""
        return self.arguments.term_factors[: len(self.names)]

    @property
    def data(self) -> Structure:
        """The data, with a dict of columns for each DataFrame."""
        return self.grouped.data

    def check_structure(self, data: Structure) -> None:
        """Refuses data whose structure is not that of its own data."""
        self._function.points.check_structure(with_columns(data))

    def rescale(self, f_scale: float | dict[str, float]) -> None:
        """Replaces `f_scale`.

        Args:
            f_scale: a number, or a dict from a block's name to one.
        """
        self._factors = self._factors.rescaled(f_scale)
        self._weigh()

    def reweigh(self, loss_weights: dict[str, float] | None) -> None:
        """Replaces `loss_weights`.

        Args:
            loss_weights: a dict from a block's name to its weight, or `None`
                for weights of one.
        """
        self._factors = self._factors.reweighted(loss_weights)
        self._weigh()

    def value(self, theta: npt.ArrayLike) -> float:
        """The loss at `theta`."""
        theta = np.asarray(theta, dtype="float64")
        if self._matrix is not None and self._matrix.is_cheap:
            return self._matrix.loss(self._checked(theta, "theta"))
        return float(self.block_factors @ self._sums(theta))

    def gauss_newton(self) -> HostGaussNewton:
        """The Gauss-Newton matrix of the loss.

        From now on, small problems compute it with every loss. The losses of
        several blocks cannot be told from it.
        """
        matrix = HostGaussNewton(self.program.gauss_newton, self)
        self._matrix = None if self.names[1:] else matrix
        return matrix

    def block_losses(self, theta: npt.ArrayLike) -> dict[str, float]:
        """The losses of the blocks at `theta`, without weights, by name.

        They need no further evaluation if the loss was last evaluated there.
        """
        sums = self._sums(np.asarray(theta, dtype="float64"))
        losses = sums / self._factors.divisors(self._counts)
        return dict(zip(self.names, losses.tolist(), strict=True))

    def residuals(self, theta: Vector) -> dict[str, Matrix]:
        """The residuals at `theta`, without loss and weights.

        Returns:
            A dict from a block's name to an array with a row for each row of
            the block's data, of all processes.
        """
        found = self.processes.together(
            lambda: self.own_residuals(theta), "residuals"
        )
        if self.processes.is_alone:
            return found
        groups = zip(self.names, self._function.block_groups, strict=True)
        return {
            name: found[name]
            if group is None
            else self.processes.gather(found[name])
            for name, group in groups
        }

    def own_residuals(self, theta: Vector) -> dict[str, Matrix]:
        """Like `residuals`, but of the data of this process."""
        found = {}
        for i, term in enumerate(self.program.terms):
            values = self.outputs(i, theta, self.grouped.groups[i])
            found.update(term.named(values))
        return found

    def row_norms(self, data: Structure, key: Any) -> Vector:
        """The norm of the residuals at each row of some data.

        Args:
            data: see `replace`.
            key: if `data` is a dict, the entry whose rows to use, or `None`.
        """
        group = self._function.points.group_of(key)
        index = self._function.groups.index(group)
        arrays = self._function.grouped(with_columns(data))[index]
        values = self.outputs(index, self.initial_position(), arrays)
        return np.linalg.norm(values, axis=1)

    def outputs(
        self, index: int, theta: Vector, arrays: Sequence[Array]
    ) -> Matrix:
        """The residuals of a term at rows of its data.

        Args:
            index: the place of the term in the program's `terms`.
            theta: the point.
            arrays: the rows.

        Returns:
            An array of shape `(rows, width)`.
        """
        with backend.float64():
            rows = tuple(map(as_tensor, arrays))
            compiled = self.program.outputs[index]
            return to_array(compiled(theta, self.arguments.frozen, rows))

    @functools.cached_property
    def _loss_unit(self) -> float:
        if self.evaluation_eps < NARROW:
            return 1.0
        try:
            sums = self._sums(self.initial_position())
        except Exception:
            return 1.0  # The evaluations of the fit will raise the error.
        slopes = self.arguments.term_factors[: len(sums)] * np.sqrt(
            sums / self._counts
        )
        # A fit makes residuals, and therefore slopes, smaller. Our choice:
        # slopes begin at 2**20, so that they can become 2**40 times smaller
        # before they leave the range in which no unit is needed.
        return unit_for(largest(slopes[np.isfinite(slopes)]), room=20)

    def _sums(self, theta: Vector) -> Vector:
        """The losses of the blocks at a point, summed over their residuals."""
        if self._latest is not None:
            latest, sums = self._latest
            if np.array_equal(latest, theta):
                return sums
        with backend.float64():
            theta = self._checked(theta, "theta")
            shapes = [(len(self.names),)]
            total = self.arguments.total(
                self.program.sums, theta, shapes=shapes
            )
            sums = to_array(total)
        self._latest = theta.copy(), sums
        return sums

    def _weigh(self) -> None:
        """Sets the term factors."""
        factors = self._factors.term_factors(self._counts)
        self.arguments = dataclasses.replace(
            self.arguments, term_factors=factors
        )
        self._latest = None


def _checked(
    fn: Callable[..., Structure],
    variables: list[keras.Variable],
    data: Structure,
    points: Points,
    name: str,
) -> ResidualFunction:
    function = ResidualFunction(fn, variables, data, points, name)
    function.check_rows()
    return function
