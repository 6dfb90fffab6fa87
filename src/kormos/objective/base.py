"""Objectives: losses as functions of one flat vector."""

import copy
import functools

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.arithmetic.vectors import rounding
from kormos.arithmetic.vectors import to_array
from kormos.data.variables import have_changed
from kormos.data.variables import reads_seeds
from kormos.float64.settings import turn
from kormos.objective.compiled import count_rows
from kormos.objective.compiled import each_chunk
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.objective.units import size_of


class FlatObjective:
    """A loss as a function of one flat vector.

    A vector given as a NumPy array (or a list) is evaluated with float64
    arithmetic around the model's own and answered with NumPy arrays, which is
    what SciPy wants. A vector given as a tensor of the backend is answered
    with tensors of its dtype and can be traced: inside `tf.function` or
    `jax.jit`, by TensorFlow Probability, optax or optimistix.

    Evaluating assigns nothing to any variable.

    Subclasses set `program`, a `Program`, and `_chunks` and `_scales`, its
    arguments; or `_chunks` to `None`, and yield `pieces` of data that are not
    in memory.
    """

    program = None
    # Whether it can be evaluated in float64 from now on, by `widen`.
    can_widen = False
    _chunks: tuple | None = ((None, ()),)
    _term_factors = np.ones(1)

    @functools.cached_property
    def _factor_tensors(self):
        """The term factors of a loss, and of one that is differentiated."""
        return tuple(
            _tensor(term_factors)
            for term_factors in (self._term_factors, self._steep_factors)
        )

    @property
    def _steep_factors(self):
        return self._term_factors * self._loss_unit

    @functools.cached_property
    def _loss_unit(self):
        """The power of two by which a loss is differentiated: `units.py`."""
        return 1.0

    def _set_term_factors(self, term_factors):
        self._term_factors = term_factors
        self.__dict__.pop("_factor_tensors", None)

    @property
    def is_streamed(self):
        """Whether data are read again at every evaluation."""
        return self._chunks is None

    @property
    def row_counts(self):
        """The rows of data that each of the program's functions is given."""
        return [count_rows(pair) for pair in self._chunks]

    @property
    def variables(self):
        """The variables that the flat vector holds, in order."""
        return list(self.program.packing.variables)

    @property
    def size(self):
        """The number of parameters."""
        return self.program.packing.size

    def name_of(self, index):
        """The path of the variable of an entry of the vector, and its place."""
        for variable in self.variables:
            count = int(np.prod(variable.shape))
            if index < count:
                place = np.unravel_index(index, variable.shape or (1,))
                inside = ", ".join(str(int(i)) for i in place)
                return f"{variable.path}[{inside}]"
            index -= count
        raise IndexError(index)

    @property
    def epsilon(self):
        """The spacing of numbers near one in the coarsest dtype in use."""
        return max(rounding(d) for d in self.program.packing.dtypes)

    @property
    def rounding(self):
        """The spacing of numbers near one in the coarsest variable."""
        return self.program.packing.rounding

    def widen(self):
        """Evaluates in float64 from now on."""
        self.can_widen = False
        self._widen()

    def widened(self):
        """A twin that evaluates in float64.

        Raises:
            Float64Error: where something cannot.
        """
        twin = copy.copy(self)
        twin._prepare_wide()
        twin.widen()
        return twin

    def _prepare_wide(self):
        """Finds what cannot be evaluated in float64."""

    def _widen(self):
        raise NotImplementedError

    def refresh(self):
        """Reads anew the variables that the loss reads and keeps fixed."""
        self._frozen = self.program.frozen_values()

    def followed(self, before, theta):
        """Takes over what others have assigned since.

        Args:
            before: the variables' values then, by `initial_position`.
            theta: the point that these were rounded from.

        Returns:
            The point to go on from, where the loss or the variables are
            others now, or `None`.
        """
        present = self.initial_position()
        is_moved = not np.array_equal(before, present, equal_nan=True)
        frozen = self.program.frozen_variables
        if not (is_moved or have_changed(frozen, self._frozen)):
            return None
        self.refresh()
        return present if is_moved else theta

    def initial_position(self):
        """The variables' present values: float64 array of shape `(size,)`."""
        return self.program.packing.read()

    def assign(self, theta):
        """Writes a flat vector, array or tensor, into the variables."""
        if not isinstance(theta, (np.ndarray, list, tuple)):
            theta = ops.convert_to_numpy(theta)
        self.program.packing.write(self._checked(theta, "theta"))

    @property
    def draws(self):
        """Whether the loss may hold random numbers."""
        return reads_seeds(self.program.frozen_variables)

    def reference(self, theta):
        """The loss as it is with a point in the variables, not compiled.

        The variables, which are changed for a moment, round the point.

        Returns:
            The point as they have it, and the loss, NaN where that raises.
        """
        variables = self.variables
        with turn("changed"):
            kept = [np.array(ops.convert_to_numpy(v.value)) for v in variables]
            try:
                self.assign(theta)
                point = self.initial_position()
                with backend.wide():
                    return point, self._as_it_is()
            except Exception:
                # What the numerics are not, a fit will say itself.
                return point, np.nan
            finally:
                for variable, value in zip(variables, kept, strict=True):
                    variable.assign(value)

    def _as_it_is(self):
        losses = []
        for _, term_factors, pairs in self.pieces():
            for fn, pair in zip(self.program.chunk_losses, pairs, strict=True):
                call = self._once(functools.partial(fn, None, None))
                chunks = each_chunk(pair) if any(pair) else [()]
                losses += [
                    number(call(term_factors, chunk)) for chunk in chunks
                ]
        return float(np.sum(losses))

    def _once(self, fn):
        """What calls a function once or twice, the fastest way."""
        return backend.once(fn)

    def value(self, theta):
        """The loss at `theta`."""
        if is_host(theta):
            with backend.wide():
                theta = self._checked(theta, "theta")
                return number(self.total(self.program.value, theta))
        return self.total(self.program.value, theta)

    def value_and_grad(self, theta):
        """The loss at `theta`, and its gradient of shape `(size,)`."""
        if is_host(theta):
            with backend.wide():
                theta = self._checked(theta, "theta")
                loss, grad = self._steep(self.program.value_and_grad, theta)
                return number(loss), to_array(grad)
        return self._steep(self.program.value_and_grad, theta)

    __call__ = value_and_grad

    def hvp(self, theta, vector):
        """The Hessian at `theta` times `vector`, of shape `(size,)`."""
        if is_host(theta):
            theta = self._checked(theta, "theta")
            vector = self._checked(vector, "vector")
            size = size_of(vector)
            with backend.wide():
                product = self._steep(self.program.hvp, theta, vector / size)
                return to_array(product) * size
        return self._steep(self.program.hvp, theta, vector)

    def hessian(self, theta):
        """The dense Hessian at `theta`, by `size` products: NumPy only."""
        rows = [self.hvp(theta, row) for row in np.eye(self.size)]
        hessian = np.stack(rows)
        return (hessian + hessian.T) / 2

    def gauss_newton(self):
        """The Gauss-Newton matrix of the loss: a `HostGaussNewton`.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        return HostGaussNewton(self.program.gauss_newton, self)

    def traceable(self):
        """Loss and gradient for use inside a compiled function.

        Returns:
            A function `(theta, *arguments) -> (loss, gradient)` of tensors,
            and these arguments.
        """

        def value_and_grad(theta, unit, *arguments):
            loss, grad = self.program.trace_value_and_grad(theta, *arguments)
            return loss / unit, grad / unit

        unit = _tensor(np.array(self._loss_unit))
        return value_and_grad, (unit, *next(self.pieces(is_steep=True)))

    def compiled_loop(self, key, fn):
        """`fn(state, *args) -> state`, compiled once for a key."""
        return self.program.compiled_loop(key, fn)

    def pieces(self, is_steep=False):
        """Yields the arguments of compiled functions, of all the data.

        The functions' values add up over them.

        Args:
            is_steep: whether the loss is multiplied by the unit.
        """
        yield self._frozen, self._factor_tensors[is_steep], self._chunks

    def _steep(self, fn, *vectors):
        """As `total`, of what is differentiated in the dtype of the layers."""
        total = self.total(fn, *vectors, is_steep=True)
        if self._loss_unit == 1:
            return total
        return tree.map_structure(
            lambda value: (
                backend.view(value) / self._loss_unit
                if is_host(vectors[0])
                else value / self._loss_unit
            ),
            total,
        )

    def total(self, fn, *vectors, is_steep=False):
        """The sum of a compiled function's values over all the data."""
        if not is_host(vectors[0]):
            return self._traced(fn, is_steep, *vectors)
        pieces = self.pieces(is_steep)
        total = fn(*vectors, *next(pieces))
        for piece in pieces:
            total = tree.map_structure(_add, total, fn(*vectors, *piece))
        return total

    def _traced(self, fn, is_steep, *vectors):
        if self.is_streamed:
            raise ValueError(
                "An objective that streams its data reads them in Python, "
                "which no compiled function can: give vectors as NumPy "
                f"arrays. Received: a {type(vectors[0]).__name__}"
            )
        term_factors = self._steep_factors if is_steep else self._term_factors
        return fn(*vectors, self._frozen, term_factors, self._chunks)

    def _checked(self, vector, name):
        vector = np.asarray(vector, dtype="float64")
        if vector.shape != (self.size,):
            raise ValueError(
                f"Argument `{name}` must be a vector of the {self.size} "
                f"parameters. Received: shape {vector.shape}"
            )
        return vector


def _tensor(array):
    with backend.wide():
        return ops.convert_to_tensor(array, dtype="float64")


def _add(total, value):
    # In NumPy, which waits: else many pieces would be in memory at once.
    return backend.view(total) + backend.view(value)


def is_host(vector):
    return isinstance(vector, (np.ndarray, list, tuple))
