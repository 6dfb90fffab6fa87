"""Losses that are sums of squares, or of robust losses, of residuals."""

import dataclasses
import functools
import numbers
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from kormos import backend
from kormos.arithmetic.vectors import NARROW
from kormos.arithmetic.vectors import to_array
from kormos.backend.common import as_tensor
from kormos.data.memory import Data
from kormos.data.points import Points
from kormos.data.points import with_columns
from kormos.float64.evaluation import check_precision
from kormos.float64.evaluation import decide
from kormos.float64.evaluation import starts_wide
from kormos.objective.base import FlatObjective
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import ChunkPair
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import Program
from kormos.objective.compiled import sum_over_chunks
from kormos.objective.functions import robust
from kormos.objective.functions.kept import kept
from kormos.objective.functions.residual_blocks import ResidualFunction
from kormos.objective.gauss_newton.compiled import GaussNewton
from kormos.objective.layout import Packing
from kormos.objective.units import largest
from kormos.objective.units import unit_for
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector


class ResidualTerm:
    """The residual blocks that depend on one group of data: an `OutputTerm`.

    Its outputs are the residuals of these blocks.

    Args:
        function: the function of all residuals.
        group: the number of the group, or `None` for the blocks that depend on
            no data.
        rho: one of `robust.LOSSES`.

    Attributes:
        blocks: the places of its blocks in the function's `names`.
        width: the number of residuals in a row, of all its blocks together.
    """

    is_diagonal = True
    is_convex = False
    is_residual = True
    has_penalty = False

    def __init__(
        self,
        function: ResidualFunction,
        group: int | None,
        rho: Callable[[Tensor], Tensor],
    ) -> None:
        self._function = function
        self._group = group
        self._rho = rho
        self.blocks = [
            i for i, g in enumerate(function.block_groups) if g == group
        ]
        self._widths = [function.widths[i] for i in self.blocks]
        self.width = sum(self._widths)

    def rows(self, chunk: Chunk) -> Structure:
        """All arrays of a chunk: the function needs them."""
        return chunk

    def outputs(
        self,
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        rows: Structure,
    ) -> Tensor:
        """The residuals of rows, of shape `(rows, width)`."""
        blocks = self._function(parts, frozen, self._group, rows)
        count = rows[0].shape[0]
        # On TensorFlow, blocks that the user gave gradients of their own may
        # have lost their shapes.
        flat = [
            ops.reshape(blocks[i], (count, width))
            for i, width in zip(self.blocks, self._widths, strict=True)
        ]
        return ops.concatenate(flat, axis=1) if flat[1:] else flat[0]

    def named(self, values: Matrix) -> dict[str, Matrix]:
        """Splits outputs into those of each block, by its name."""
        parts = np.split(values, np.cumsum(self._widths)[:-1], axis=1)
        names = [self._function.names[i] for i in self.blocks]
        return dict(zip(names, parts, strict=True))

    def sums(self, values: Tensor, term_factors: Tensor) -> Tensor:
        """The loss of each block, summed over its residuals.

        Args:
            values: the outputs.
            term_factors: as `ResidualProgram` has it.

        Returns:
            A vector with an entry for each block of the function, zero for
            those that are not in this term.
        """
        count = len(self._function.names)
        # In float32, squares of very small or large numbers would vanish or
        # overflow.
        values = ops.cast(values, term_factors.dtype)
        ends = np.cumsum(self._widths)[:-1].tolist()
        parts = ops.split(values, ends, axis=1) if ends else [values]
        sums = [ops.zeros((), dtype=term_factors.dtype)] * count
        for i, part in zip(self.blocks, parts, strict=True):
            f = term_factors[count + i]
            sums[i] = ops.sum(self._rho(ops.square(part / f))) * f**2
        return ops.stack(sums)

    def loss(
        self,
        values: Tensor,
        frozen: list[Tensor] | None,
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """What a chunk adds to the loss by its residuals."""
        del frozen, chunk
        sums = self.sums(values, term_factors)
        return ops.sum(sums * term_factors[: len(self._function.names)])

    def penalty(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """Zero: residuals have no penalty."""
        del parts, frozen, chunk
        return ops.zeros((), dtype=term_factors.dtype)

    def chunk_sums(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Tensor:
        """What a chunk adds to `sums`."""
        return self.sums(self.outputs(parts, frozen, chunk), term_factors)

    def chunk_loss(
        self,
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """What a chunk adds to the loss: a `ChunkLoss`."""
        values = self.outputs(parts, frozen, chunk)
        return self.loss(values, frozen, term_factors, chunk)


class ResidualProgram(Program):
    """The compiled functions of residuals.

    Its `term_factors` hold the factor of each block's sum in the loss, and then
    the `f_scale` of each block.

    Args:
        packing: the `Packing` of the variables.
        function: the function of all residuals.
        rho: one of `robust.LOSSES`.

    Attributes:
        terms: a term for each group that has blocks.
        sums: the losses of the blocks at a point, summed over all data.
        outputs: for each term, its outputs at a point and at rows of data.
    """

    def __init__(
        self,
        packing: Packing,
        function: ResidualFunction,
        rho: Callable[[Tensor], Tensor],
    ) -> None:
        self.terms = [ResidualTerm(function, g, rho) for g in function.groups]
        super().__init__(
            packing,
            function.frozen_variables,
            [term.chunk_loss for term in self.terms],
            backend.compile,
        )
        self.sums = backend.compile(self._sums)
        self.outputs = [
            backend.compile(self._outputs_of(term)) for term in self.terms
        ]

    @functools.cached_property
    def gauss_newton(self) -> GaussNewton:
        """Derivatives of the residuals."""
        return GaussNewton(self.packing, self.terms, backend.compile)

    def _sums(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Tensor:
        parts = self.packing.unpack(theta)

        def add(fn: Callable[..., Tensor], chunk: Chunk) -> tuple[Tensor, ...]:
            return (
                ops.cast(fn(parts, frozen, term_factors, chunk), theta.dtype),
            )

        count = term_factors.shape[0] // 2
        return sum_over_chunks(
            add,
            [term.chunk_sums for term in self.terms],
            chunks,
            (ops.zeros((count,), dtype=theta.dtype),),
        )[0]

    def _outputs_of(self, term: ResidualTerm) -> Callable[..., Tensor]:
        def outputs(
            theta: Tensor, frozen: list[Tensor], rows: Structure
        ) -> Tensor:
            return term.outputs(self.packing.unpack(theta), frozen, rows)

        return outputs


class ResidualObjective(FlatObjective):
    """A sum or mean of losses of the residuals that a function returns.

    Args:
        residual_fn: as `kormos.least_squares` takes it.
        variables: list of the `keras.Variable`s to optimize.
        data: arrays for `residual_fn`, in any structure, or `None`.
        loss: the name of one of `robust.LOSSES`.
        f_scale: the size from which on residuals have less influence than in
            least squares: a number, or a dict from a block's name to one.
        loss_weights: dict from a block's name to its weight in the loss.
        reduction: `"mean"` or `"sum"`.
        batch_size: the most rows in memory at once.
        with_jacobian: whether to cut chunks so small that the derivatives of
            all their residuals fit into memory.
        precision: `None`, `"float64"` or `"auto"`, as in
            `kormos.least_squares`.
        nan_policy: `"raise"` or `"omit"`, as in `kormos.least_squares`.
        data_name: what errors call the argument `data`.

    Attributes:
        names: the names of the blocks.
        data: the data, with a dict of columns for each DataFrame.
    """

    program: ResidualProgram
    # The latest point that `_sums` evaluated, and its result.
    _latest: tuple[Vector, Vector] | None

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
        points = Points(
            data, data_name, packing.dtypes[0], nan_policy == "omit"
        )
        self._kept = kept(
            residual_fn,
            packing.variables,
            points.layout,
            lambda: _checked(residual_fn, packing.variables, data, points),
        )
        self._function = self._kept.function
        self.names = self._function.names
        self._loss = loss
        self.program = self._compiled(packing)
        self.unused_variables = self._function.unused_variables
        self._weights = _by_block("loss_weights", loss_weights, self.names)
        self._f_scales = _by_block("f_scale", f_scale, self.names)
        self._reduction = reduction
        self._batch_size = batch_size
        self._with_jacobian = with_jacobian
        self.refresh()
        self.replace(data)
        self.can_widen = decide(precision, self._prepare_wide)
        if self.can_widen and starts_wide(precision, packing.dtypes):
            self.widen()
        self._refuse_missing()

    def _compiled(self, packing: Packing) -> ResidualProgram:
        """Compiles the function, or takes what was compiled before."""
        function, loss = self._function, self._loss
        return self._kept.made(
            (loss, packing.dtype),
            lambda: ResidualProgram(packing, function, robust.LOSSES[loss]),
        )

    def _refuse_missing(self) -> None:
        """Refuses data that are not finite if residuals are then not either."""
        # Data that are too large for float32 may be right for float64, if the
        # fit can go on in that.
        function = self._kept.wide if self.can_widen else self._function
        for i, group in enumerate(function.groups):
            if group is not None:
                is_usable = functools.partial(self._is_usable, i)
                function.points.refuse_missing(self.data, group, is_usable)

    def _is_usable(self, index: int, arrays: Sequence[Array]) -> Array:
        """Whether residuals and their derivatives are finite.

        Args:
            index: the place of a term in the program's `terms`.
            arrays: rows of its data.

        Returns:
            An array of `bool`, with an entry for each row.
        """
        theta = self.initial_position()
        chunks: list[ChunkPair] = [(None, None)] * len(self.program.terms)
        try:
            values = self._outputs(index, theta, arrays)
            found = np.asarray(np.isfinite(values).all(axis=1))
            if not found.all():
                return found
            with backend.wide():
                chunks[index] = None, tuple(map(as_tensor, arrays))
                _, grad = self.program.value_and_grad(
                    theta,
                    self.arguments.frozen,
                    self.arguments.term_factors,
                    tuple(chunks),
                )
            return np.full(len(found), np.isfinite(to_array(grad)).all())
        except Exception as error:
            if not backend.is_numerical(error):
                raise
            # The fit will report the failure.
            return np.ones(len(arrays[0]), bool)

    def _prepare_wide(self) -> None:
        # A function that fails in float64 is refused now, not during the fit.
        _ = self._kept.wide

    def _widen(self) -> None:
        self._function = self._kept.wide
        self.program = self._compiled(Packing(self.variables, "float64"))
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
        self.data = data = with_columns(data)
        self._groups = self._function.grouped(data)
        chunks: list[ChunkPair] = []
        # The number of residuals of each block.
        self._counts = np.zeros(len(self.names))
        for term, arrays in zip(self.program.terms, self._groups, strict=True):
            width = term.width * self.size if self._with_jacobian else None
            stacked, last = Data(tuple(arrays), None, None).chunks(
                self._batch_size, width
            )
            chunks.append(
                (stacked and stacked[0], last and last[0]),
            )
            for i in term.blocks:
                self._counts[i] = len(arrays[0]) * self._function.widths[i]
        self.arguments = dataclasses.replace(
            self.arguments, chunks=tuple(chunks), multipliers=len(self.names)
        )
        self._weigh()

    def check_structure(self, data: Structure) -> None:
        """Refuses data whose structure is not that of its own data."""
        self._function.points.check_structure(with_columns(data))

    def rescale(self, f_scale: float | dict[str, float]) -> None:
        """Replaces `f_scale`.

        Args:
            f_scale: a number, or a dict from a block's name to one.
        """
        self._f_scales = _by_block("f_scale", f_scale, self.names)
        self._weigh()

    def value(self, theta: npt.ArrayLike) -> float:
        """The loss at `theta`."""
        theta = np.asarray(theta, dtype="float64")
        return float(
            self.arguments.term_factors[: len(self.names)] @ self._sums(theta)
        )

    def block_losses(self, theta: npt.ArrayLike) -> dict[str, float]:
        """The losses of the blocks at `theta`, without weights, by name.

        They need no further evaluation if the loss was last evaluated there.
        """
        sums = self._sums(np.asarray(theta, dtype="float64"))
        if self._reduction == "mean":
            sums = sums / self._counts
        return dict(zip(self.names, sums.tolist(), strict=True))

    def residuals(self, theta: Vector) -> dict[str, Matrix]:
        """The residuals at `theta`, without loss and weights.

        Returns:
            A dict from a block's name to an array with a row for each row of
            the block's data.
        """
        found = {}
        for i, term in enumerate(self.program.terms):
            found.update(term.named(self._outputs(i, theta, self._groups[i])))
        return found

    def squares(self) -> dict[str, int]:
        """The number of rows of each block that is a square matrix, by name."""
        groups, sizes = self._function.groups, {}
        for name, group, shape in self._function.shapes():
            if group is not None:
                shape = len(self._groups[groups.index(group)][0]), *shape[1:]
            if len(shape) == 2 and shape[0] == shape[1]:
                sizes[name] = shape[0]
        return sizes

    def row_norms(self, data: Structure, key: Any) -> Vector:
        """The norm of the residuals at each row of some data.

        Args:
            data: as `replace` takes it.
            key: if `data` is a dict, the entry whose rows to use, or `None`.
        """
        group = self._function.points.group_of(key)
        index = self._function.groups.index(group)
        arrays = self._function.grouped(with_columns(data))[index]
        values = self._outputs(index, self.initial_position(), arrays)
        return np.linalg.norm(values, axis=1)

    def _outputs(
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
        with backend.wide():
            rows = tuple(map(as_tensor, arrays))
            compiled = self.program.outputs[index]
            return to_array(compiled(theta, self.arguments.frozen, rows))

    @functools.cached_property
    def _loss_unit(self) -> float:
        if self.epsilon < NARROW:
            return 1.0
        try:
            sums = self._sums(self.initial_position())
        except Exception:
            return 1.0  # The evaluations of the fit will raise the error.
        slopes = self.arguments.term_factors[: len(sums)] * np.sqrt(
            sums / self._counts
        )
        # A fit makes residuals, and so the slopes, smaller. It is a choice of
        # ours that they begin at 2**20, so that they may become 2**40 times
        # smaller before they are as small as the smallest moderate ones.
        return unit_for(largest(slopes[np.isfinite(slopes)]), room=20)

    def _sums(self, theta: Vector) -> Vector:
        """The losses of the blocks at a point, summed over their residuals."""
        if self._latest is not None:
            latest, sums = self._latest
            if np.array_equal(latest, theta):
                return sums
        with backend.wide():
            theta = self._checked(theta, "theta")
            sums = to_array(self.arguments.total(self.program.sums, theta))
        self._latest = theta.copy(), sums
        return sums

    def _weigh(self) -> None:
        """Sets the term factors."""
        factors = self._weights.copy()
        if self._reduction == "mean":
            factors = factors / self._counts
        self.arguments = dataclasses.replace(
            self.arguments,
            term_factors=np.concatenate([factors, self._f_scales]),
        )
        self._latest = None


def _checked(
    fn: Callable[..., Structure],
    variables: list[keras.Variable],
    data: Structure,
    points: Points,
) -> ResidualFunction:
    function = ResidualFunction(fn, variables, data, points)
    function.check_rows()
    return function


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
