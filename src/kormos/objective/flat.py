"""Objectives: losses as functions of one flat vector."""

import numpy as np
from keras import ops

from kormos import backend
from kormos.numerics.vectors import rounding
from kormos.numerics.vectors import to_array
from kormos.objective.host_gauss_newton import HostGaussNewton


class FlatObjective:
    """A loss as a function of one flat vector.

    A vector given as a NumPy array (or a list) is evaluated with float64
    arithmetic around the model's own and answered with NumPy arrays, which is
    what SciPy wants. A vector given as a tensor of the backend is answered
    with tensors of its dtype and can be traced: inside `tf.function` or
    `jax.jit`, by TensorFlow Probability, optax or optimistix.

    Evaluating assigns nothing to any variable.

    Subclasses set `program`, a `Program`, and `_chunks` and `_scales`, its
    arguments.
    """

    program = None
    # Whether it can be evaluated in float64 from now on, by `widen`.
    can_widen = False
    _chunks: tuple = ((None, ()),)
    _scales = np.ones(1)

    @property
    def variables(self):
        """The variables that the flat vector holds, in order."""
        return list(self.program.packing.variables)

    @property
    def size(self):
        """The number of parameters."""
        return self.program.packing.size

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

    def _widen(self):
        raise NotImplementedError

    def refresh(self):
        """Reads anew the variables that the loss reads and keeps fixed."""
        self._frozen = self.program.frozen_values()

    def initial_position(self):
        """The variables' present values: float64 array of shape `(size,)`."""
        return self.program.packing.read()

    def assign(self, theta):
        """Writes a flat vector, array or tensor, into the variables."""
        if not isinstance(theta, (np.ndarray, list, tuple)):
            theta = ops.convert_to_numpy(theta)
        self.program.packing.write(self._checked(theta, "theta"))

    def value(self, theta):
        """The loss at `theta`."""
        if is_host(theta):
            with backend.wide():
                return float(
                    self.program.value(
                        self._checked(theta, "theta"), *self._arguments()
                    )
                )
        return self.program.value(theta, *self._arguments())

    def value_and_grad(self, theta):
        """The loss at `theta`, and its gradient of shape `(size,)`."""
        if is_host(theta):
            with backend.wide():
                loss, grad = self.program.value_and_grad(
                    self._checked(theta, "theta"), *self._arguments()
                )
                return float(loss), to_array(grad)
        return self.program.value_and_grad(theta, *self._arguments())

    __call__ = value_and_grad

    def hvp(self, theta, vector):
        """The Hessian at `theta` times `vector`, of shape `(size,)`."""
        if is_host(theta):
            with backend.wide():
                product = self.program.hvp(
                    self._checked(theta, "theta"),
                    self._checked(vector, "vector"),
                    *self._arguments(),
                )
                return to_array(product)
        return self.program.hvp(theta, vector, *self._arguments())

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
        return HostGaussNewton(self.program.gauss_newton, self._arguments)

    def traceable(self):
        """Loss and gradient for use inside a compiled function.

        Returns:
            A function `(theta, *arguments) -> (loss, gradient)` of tensors,
            and these arguments.
        """
        frozen, scales, chunks = self._arguments()
        with backend.wide():
            scales = ops.convert_to_tensor(scales, dtype="float64")
        return self.program.trace_value_and_grad, (frozen, scales, chunks)

    def compiled_loop(self, key, fn):
        """`fn(state, *args) -> state`, compiled once for a key."""
        return self.program.compiled_loop(key, fn)

    def _arguments(self):
        return self._frozen, self._scales, self._chunks

    def _checked(self, vector, name):
        vector = np.asarray(vector, dtype="float64")
        if vector.shape != (self.size,):
            raise ValueError(
                f"Argument `{name}` must be a vector of the {self.size} "
                f"parameters. Received: shape {vector.shape}"
            )
        return vector


def is_host(vector):
    return isinstance(vector, (np.ndarray, list, tuple))
