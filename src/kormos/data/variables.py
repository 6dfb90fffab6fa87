"""Variables: which of them are read, and copies of their values."""

import contextlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kormos import backend
from kormos.types import Array
from kormos.types import Tensor


class ReadRecorder(keras.StatelessScope):
    """A stateless scope that notes which variables are read within it."""

    def __init__(self) -> None:
        super().__init__(collect_losses=True, initialize_variables=False)
        self._reads: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> Tensor:
        """The value of a variable in the scope, which notes the reading."""
        value = super().get_current_value(variable)
        if value is None:
            # Weight regularizers call this method directly, and cannot use
            # `None`. The scope is left for a moment to read the variable.
            self._reads[id(variable)] = variable
            self.__exit__()
            value = backend.local(variable.value)
            self.__enter__()
        return value

    def reads(self) -> list[keras.Variable]:
        """The variables that were read, in order."""
        return list(self._reads.values())

    def assigned(
        self, variables: Iterable[keras.Variable]
    ) -> list[keras.Variable]:
        """The variables that were assigned a value within the scope."""
        return [v for v in variables if id(v) in self.state_mapping]

    def reads_but(
        self, variables: Iterable[keras.Variable]
    ) -> list[keras.Variable]:
        """The variables that were read, except the given ones."""
        excluded = {id(v) for v in variables}
        return [v for v in self.reads() if id(v) not in excluded]


def values_of(variables: Iterable[keras.Variable]) -> list[Tensor]:
    """The present values of variables, for this process alone to use."""
    return [backend.local(v.value) for v in variables]


def snapshot(variables: Iterable[keras.Variable]) -> list[Tensor]:
    """Copies of the present values of variables."""
    # On JAX, Keras' own steps delete the tensors that they are given (those of
    # `evaluate` in a callback, for example). PyTorch assigns in place.
    with backend.float64():
        return [
            ops.stop_gradient(ops.copy(value)) for value in values_of(variables)
        ]


def assign(variable: keras.Variable, value: Any) -> None:
    """Assigns an array or a tensor, on this process alone."""
    variable.assign(backend.placed_like(value, variable.value))


@contextlib.contextmanager
def restored(variables: Sequence[keras.Variable]) -> Iterator[list[Array]]:
    """A scope that ends with the values that variables had at its beginning.

    It yields copies of these values.
    """
    kept = [np.array(backend.to_numpy(v)) for v in variables]
    try:
        yield kept
    finally:
        for variable, value in zip(variables, kept, strict=True):
            assign(variable, value)


def float64_values(variables: Iterable[keras.Variable]) -> list[Tensor]:
    """The present values of variables in float64."""
    with backend.float64():
        return [ops.cast(v, "float64") for v in values_of(variables)]


def reads_seeds(variables: Iterable[keras.Variable]) -> bool:
    """Whether the state of a `keras.random.SeedGenerator` is among them."""
    return any(is_seed(variable) for variable in variables)


def is_seed(variable: keras.Variable) -> bool:
    """Whether a variable is the state of a `keras.random.SeedGenerator`."""
    return variable.name == "seed_generator_state"


def to_float(tensor: Tensor, dtype: str) -> Tensor:
    """Casts floating-point numbers to a dtype, and nothing else."""
    own = keras.backend.standardize_dtype(tensor.dtype)
    is_float = keras.backend.is_float_dtype(own)
    return ops.cast(tensor, dtype) if is_float else tensor
