"""Variables: which of them are read, and copies of their values."""

import keras
import numpy as np
from keras import ops

from kormos import backend


class ReadRecorder(keras.StatelessScope):
    """A stateless scope that notes which variables are read within it."""

    def __init__(self):
        super().__init__(collect_losses=True, initialize_variables=False)
        self._reads = {}

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None:
            # Weight regularizers ask the scope itself, and take no `None`.
            self._reads[id(variable)] = variable
            self.__exit__()
            value = variable.value
            self.__enter__()
        return value

    def reads(self):
        return list(self._reads.values())

    def assigned(self, variables):
        """Those of the variables that have other values now."""
        return [v for v in variables if id(v) in self.state_mapping]

    def reads_but(self, variables):
        """The variables that were read, without those given."""
        excluded = {id(v) for v in variables}
        return [v for v in self.reads() if id(v) not in excluded]


def snapshot(variables):
    """Copies of the variables' present values."""
    # JAX deletes what Keras' own steps are given (`evaluate` in a callback,
    # say), and PyTorch assigns in place.
    with backend.wide():
        return [ops.stop_gradient(ops.copy(v.value)) for v in variables]


def wide_values(variables):
    """The variables' present values in float64."""
    with backend.wide():
        return [ops.cast(v.value, "float64") for v in variables]


def reads_seeds(variables):
    """Whether the state of a `keras.random.SeedGenerator` is among them."""
    return any(is_seed(variable) for variable in variables)


def is_seed(variable):
    """Whether a variable is the state of a `keras.random.SeedGenerator`."""
    return variable.name == "seed_generator_state"


def have_changed(variables, values):
    """Whether variables have other values now than those of a `snapshot`."""
    return not all(
        np.array_equal(
            ops.convert_to_numpy(variable.value),
            ops.convert_to_numpy(value),
            equal_nan=True,
        )
        for variable, value in zip(variables, values, strict=True)
        # Any call of a layer that draws moves on what it draws from.
        if not is_seed(variable)
    )


def to_float(tensor, dtype):
    """A tensor of floating-point numbers in a dtype; another as it is."""
    own = keras.backend.standardize_dtype(tensor.dtype)
    is_float = keras.backend.is_float_dtype(own)
    return ops.cast(tensor, dtype) if is_float else tensor
