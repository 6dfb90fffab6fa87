"""Sums of squares (or of other losses) of the residuals of a function."""

import functools
import numbers

import numpy as np
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
from kormos.objective.compiled import Program
from kormos.objective.compiled import sum_over_chunks
from kormos.objective.functions import robust
from kormos.objective.functions.residual_blocks import ResidualFunction
from kormos.objective.gauss_newton.compiled import GaussNewton
from kormos.objective.layout import Packing
from kormos.objective.units import largest
from kormos.objective.units import unit_for


class ResidualTerm:
    """The residual blocks with a row for each row of some of the data.

    Args:
        function: the `ResidualFunction`.
        group: the number of the group of data, or `None` for the blocks that
            belong to no data.
        rho: one of `robust.LOSSES`.

    Attributes:
        width: residuals of a row, of all blocks together.
        is_convex: whether the loss is known to be convex in the outputs.
        is_residual: whether outputs are residuals, so that the loss is least
            where they vanish.
    """

    is_diagonal = True
    is_convex = False
    is_residual = True
    has_penalty = False

    def __init__(self, function, group, rho):
        self._function = function
        self._group = group
        self._rho = rho
        self.blocks = [
            i for i, g in enumerate(function.block_groups) if g == group
        ]
        self._widths = [function.widths[i] for i in self.blocks]
        self.width = sum(self._widths)

    def rows(self, chunk):
        """What `outputs` wants of a chunk."""
        return chunk

    def outputs(self, parts, frozen, rows):
        """The residuals of rows, `(rows, width)`."""
        blocks = self._function(parts, frozen, self._group, rows)
        count = rows[0].shape[0]
        # A user's own derivatives may have lost their shapes (TensorFlow).
        flat = [
            ops.reshape(blocks[i], (count, width))
            for i, width in zip(self.blocks, self._widths, strict=True)
        ]
        return ops.concatenate(flat, axis=1) if flat[1:] else flat[0]

    def named(self, values):
        """The blocks' columns of outputs, by name."""
        parts = np.split(values, np.cumsum(self._widths)[:-1], axis=1)
        names = [self._function.names[i] for i in self.blocks]
        return dict(zip(names, parts, strict=True))

    def sums(self, values, term_factors):
        """The loss of each block of the function, summed over its residuals."""
        count = len(self._function.names)
        # Squares of float32 would vanish, or overflow, in small or large units.
        values = ops.cast(values, term_factors.dtype)
        ends = np.cumsum(self._widths)[:-1].tolist()
        parts = ops.split(values, ends, axis=1) if ends else [values]
        sums = [ops.zeros((), dtype=term_factors.dtype)] * count
        for i, part in zip(self.blocks, parts, strict=True):
            f = term_factors[count + i]
            sums[i] = ops.sum(self._rho(ops.square(part / f))) * f**2
        return ops.stack(sums)

    def loss(self, values, frozen, term_factors, chunk):
        """What a chunk adds to the loss by its residuals."""
        del frozen, chunk
        sums = self.sums(values, term_factors)
        return ops.sum(sums * term_factors[: len(self._function.names)])

    def chunk_sums(self, parts, frozen, term_factors, chunk):
        return self.sums(self.outputs(parts, frozen, chunk), term_factors)

    def chunk_loss(self, parts, frozen, term_factors, chunk):
        values = self.outputs(parts, frozen, chunk)
        return self.loss(values, frozen, term_factors, chunk)


class ResidualProgram(Program):
    """The compiled functions of residuals.

    `term_factors` holds the factors of the blocks' sums in the loss, then the
    blocks' `f_scale`.
    """

    def __init__(self, packing, function, rho):
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
    def gauss_newton(self):
        return GaussNewton(self.packing, self.terms, backend.compile)

    def _sums(self, theta, frozen, term_factors, chunks):
        parts = self.packing.unpack(theta)

        def add(fn, chunk):
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

    def _outputs_of(self, term):
        def outputs(theta, frozen, rows):
            return term.outputs(self.packing.unpack(theta), frozen, rows)

        return outputs


class ResidualObjective(FlatObjective):
    """The loss that a function's residuals make.

    Args:
        residual_fn: as `kormos.least_squares` takes it.
        variables: list of the `keras.Variable`s to optimize.
        data: arrays for `residual_fn`, in any structure, or `None`.
        loss: the name of one of `robust.LOSSES`.
        f_scale: the residual at which the loss leaves the square: a number,
            or a dict by block.
        loss_weights: dict from a block's name to its weight in the loss.
        reduction: `"mean"` or `"sum"`.
        batch_size: the most rows in memory at once.
        with_jacobian: whether chunks are for derivatives of residuals.
        precision: `None`, `"float64"` or `"auto"`, as `kormos.least_squares`
            has it.
        nan_policy: `"raise"` or `"omit"`, likewise.
        data_name: the argument that the data are.
    """

    def __init__(
        self,
        residual_fn,
        variables,
        data=None,
        loss="linear",
        f_scale=1.0,
        loss_weights=None,
        reduction="mean",
        batch_size=None,
        with_jacobian=True,
        precision=None,
        nan_policy="raise",
        data_name="data",
    ):
        check_precision(precision)
        packing = Packing(variables)
        points = Points(
            data, data_name, packing.dtypes[0], nan_policy == "omit"
        )
        self._function = ResidualFunction(
            residual_fn, packing.variables, data, points
        )
        self._function.check_rows()
        self.names = self._function.names
        self._rho = robust.LOSSES[loss]
        self.program = ResidualProgram(packing, self._function, self._rho)
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

    def _refuse_missing(self):
        """Refuses data that are not finite and make residuals of no use."""
        # What is too large for float32 is not for float64, where that follows.
        function = self._wide if self.can_widen else self._function
        for i, group in enumerate(function.groups):
            if group is not None:
                is_usable = functools.partial(self._is_usable, i)
                function.points.refuse_missing(self.data, group, is_usable)

    def _is_usable(self, index, arrays):
        """Whether residuals at rows of data, and derivatives, are finite."""
        theta, nothing = self.initial_position(), (None, None)
        chunks = [nothing] * len(self.program.terms)
        try:
            values = self._outputs(index, theta, arrays)
            found = np.isfinite(values).all(axis=1)
            if not found.all():
                return found
            with backend.wide():
                chunks[index] = None, tuple(map(as_tensor, arrays))
                _, grad = self.program.value_and_grad(
                    theta, self._frozen, self._term_factors, tuple(chunks)
                )
            return np.full(len(found), np.isfinite(to_array(grad)).all())
        except Exception as error:
            if not backend.is_numerical(error):
                raise
            # Where the numerics fail, a fit says so.
            return np.ones(len(arrays[0]), bool)

    def _prepare_wide(self):
        # What will not do in float64 is found now.
        self._wide = self._function.widened()
        self._wide.check_width()

    def _widen(self):
        self._function = self._wide
        packing = Packing(self.variables, "float64")
        self.program = ResidualProgram(packing, self._function, self._rho)
        self.__dict__.pop("_loss_unit", None)
        self.refresh()
        self.replace(self.data)

    def refresh(self):
        super().refresh()
        self._latest = None, None

    def replace(self, data):
        """Replaces the data by others of the same structure."""
        self.data = data = with_columns(data)
        self._groups = self._function.grouped(data)
        chunks, self._counts = [], np.zeros(len(self.names))
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
        self._chunks = tuple(chunks)
        self._weigh()

    def check_structure(self, data):
        """Refuses data of another structure than its own."""
        self._function.points.check_structure(with_columns(data))

    def rescale(self, f_scale):
        """Replaces the residuals at which the loss leaves the square."""
        self._f_scales = _by_block("f_scale", f_scale, self.names)
        self._weigh()

    def value(self, theta):
        """The loss at `theta`."""
        theta = np.asarray(theta, dtype="float64")
        return float(self._term_factors[: len(self.names)] @ self._sums(theta))

    def block_losses(self, theta):
        """The losses of the blocks at `theta`, without weights, by name.

        They are known without another evaluation where the loss is that was
        evaluated last.
        """
        sums = self._sums(np.asarray(theta, dtype="float64"))
        if self._reduction == "mean":
            sums = sums / self._counts
        return dict(zip(self.names, sums.tolist(), strict=True))

    def residuals(self, theta):
        """The residuals at `theta`, as they are: arrays by block's name."""
        found = {}
        for i, term in enumerate(self.program.terms):
            found.update(term.named(self._outputs(i, theta, self._groups[i])))
        return found

    def squares(self):
        """The blocks that are square matrices: their sizes by name."""
        groups, sizes = self._function.groups, {}
        for name, group, shape in self._function.shapes():
            if group is not None:
                shape = len(self._groups[groups.index(group)][0]), *shape[1:]
            if len(shape) == 2 and shape[0] == shape[1]:
                sizes[name] = shape[0]
        return sizes

    def row_norms(self, data, key):
        """The norm of the residuals at each row of some data.

        Args:
            data: as `replace` takes it.
            key: the entry of `data`, if it is a dict, whose rows are meant.
        """
        group = self._function.points.group_of(key)
        index = self._function.groups.index(group)
        arrays = self._function.grouped(with_columns(data))[index]
        values = self._outputs(index, self.initial_position(), arrays)
        return np.linalg.norm(values, axis=1)

    def _outputs(self, index, theta, arrays):
        """The residuals of a term at rows of its data, `(rows, width)`."""
        with backend.wide():
            rows = tuple(map(as_tensor, arrays))
            compiled = self.program.outputs[index]
            return to_array(compiled(theta, self._frozen, rows))

    @property
    def _steep_factors(self):
        factors, f_scales = np.split(self._term_factors, 2)
        return np.concatenate([factors * self._loss_unit, f_scales])

    @functools.cached_property
    def _loss_unit(self):
        if self.epsilon < NARROW:
            return 1.0
        try:
            sums = self._sums(self.initial_position())
        except Exception:
            return 1.0  # The evaluation itself will say so.
        slopes = self._term_factors[: len(sums)] * np.sqrt(sums / self._counts)
        # They become smaller.
        return unit_for(largest(slopes[np.isfinite(slopes)]), room=20)

    def _sums(self, theta):
        latest, sums = self._latest
        if latest is None or not np.array_equal(latest, theta):
            with backend.wide():
                theta = self._checked(theta, "theta")
                sums = to_array(self.total(self.program.sums, theta))
            self._latest = theta.copy(), sums
        return sums

    def _weigh(self):
        factors = self._weights.copy()
        if self._reduction == "mean":
            factors = factors / self._counts
        self._set_term_factors(np.concatenate([factors, self._f_scales]))
        self._latest = None, None


def _by_block(name, value, names):
    """A number for each block, from one or from a dict."""
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
    found = [value.get(n, 1.0) for n in names]
    for number in found:
        if not isinstance(number, numbers.Real) or not 0 < number < np.inf:
            raise ValueError(
                f"Argument `{name}` must be a positive number, or a dict of "
                f"these by block. Received: {number!r}"
            )
    return np.array(found, dtype="float64")
