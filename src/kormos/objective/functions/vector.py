"""Vector-valued functions of Keras variables: constraints."""

from collections.abc import Callable

import numpy as np
from keras import ops

from kormos import backend
from kormos.arithmetic.vectors import to_array
from kormos.data.watched import Copies
from kormos.objective.functions.kept import kept
from kormos.objective.functions.stateless import StatelessFunction
from kormos.objective.layout import Packing
from kormos.types import Matrix
from kormos.types import Tensor
from kormos.types import Vector


class VectorFunction:
    """A vector-valued function of variables, with its Jacobian.

    Args:
        fn: backend-neutral function of no arguments that reads variables and
            returns a tensor of any shape.
        packing: the `Packing` of the variables of the flat vector.
        name: the name of `fn` in errors.
    """

    def __init__(
        self, fn: Callable[[], Tensor], packing: Packing, name: str
    ) -> None:
        variables = packing.variables
        found = kept(
            fn, variables, name, lambda: StatelessFunction(fn, variables, name)
        )
        function = found.function if packing.dtype is None else found.in_float64
        self.size = int(np.prod(function.shape))
        self._function = function
        self._frozen = function.frozen_values()
        self._copies = Copies()
        self._value, self._jacobian = found.made(
            packing.dtype, _compiled, lambda compiled, *_: compiled
        )

    def refresh(self) -> bool:
        """Reads the variables that it keeps fixed.

        Returns:
            Whether they have changed.
        """
        variables = self._function.frozen_variables
        is_other = self._copies.differ(variables, self._frozen)
        if is_other:
            self._frozen = self._function.frozen_values()
        return is_other

    def value(self, theta: Vector) -> Vector:
        """The function's values at `theta`: float64 of shape `(size,)`."""
        with backend.float64():
            return to_array(self._value(theta, self._frozen))

    def jacobian(self, theta: Vector) -> Matrix:
        """Derivatives at `theta`: float64, `(size, number of parameters)`."""
        with backend.float64():
            return to_array(self._jacobian(theta, self._frozen))


def _compiled(
    function: StatelessFunction, packing: Packing
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The compiled values and Jacobian of a function of a flat vector."""

    def vector(parts: list[Tensor], frozen: list[Tensor]) -> Tensor:
        return ops.reshape(function(parts, frozen), (-1,))

    derivatives = backend.jacobian(vector)

    def value_at(theta: Tensor, frozen: list[Tensor]) -> Tensor:
        return vector(packing.unpack(theta), frozen)

    def jacobian_at(theta: Tensor, frozen: list[Tensor]) -> Tensor:
        size = int(np.prod(function.shape))
        columns = [
            ops.reshape(ops.cast(c, theta.dtype), (size, -1))
            for c in derivatives(packing.unpack(theta), frozen)
        ]
        return ops.concatenate(columns, axis=1)

    return backend.compile(value_at), backend.compile(jacobian_at)
