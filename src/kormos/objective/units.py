"""Powers of two that bring losses and vectors into the range of float32.

Backpropagation through layers in float32 multiplies slopes. For data in units
of 1e-20 these products vanish, and in units of 1e20 they overflow. Multiplying
the loss by a power of two multiplies all its slopes by the same, exactly.
"""

import math

import keras
import numpy as np
from keras import ops

from kormos.data.memory import leaves
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor

# No unit is needed for slopes between 2**-20 and 2**20, about 1e-6 and 1e6. Our
# choice: it leaves float32, which goes from 2**-126 to 2**127, a factor of
# 2**100 for the products of slopes inside the layers.
_MODERATE_EXPONENT = 20
# The largest exponent of a unit. Float32 can represent the unit itself, and
# 2**27 times as much.
_LARGEST_EXPONENT = 100


def unit_for(slope: float, room: int = 0) -> float:
    """A power of two by which to multiply a loss that is differentiated.

    Args:
        slope: the size of the loss's slopes in the outputs.
        room: the exponent of the power of two that the slopes are brought
            to. It is positive where they are about to become smaller.
    """
    if not 0 < slope < math.inf:
        return 1.0
    _, exponent = math.frexp(slope)
    if abs(exponent) <= _MODERATE_EXPONENT:
        return 1.0
    power = max(-_LARGEST_EXPONENT, min(room - exponent, _LARGEST_EXPONENT))
    return 2.0**power


def size_of(vector: Array) -> float:
    """The largest power of two that the largest absolute entry reaches.

    It is one for an array of zeros, or with entries that are not finite.
    """
    size = float(np.abs(vector).max(initial=0.0))
    if not 0 < size < math.inf:
        return 1.0
    return 2.0 ** (math.frexp(size)[1] - 1)


def largest(structure: Structure, default: float = 0.0) -> float:
    """The largest absolute value of the finite numbers in arrays.

    Args:
        structure: a structure of arrays, of which only those of floating-point
            or complex numbers count.
        default: what to return if there are none.
    """
    sizes = [
        float(np.max(np.abs(a), initial=0, where=np.isfinite(a)))
        for a in leaves(structure)
        if a.dtype.kind in "fc" and a.size
    ]
    return max(sizes, default=default)


def mean_squared_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Like Keras' own, in any dtype."""
    return _mean(ops.square(y_true - y_pred))


def huber(y_true: Tensor, y_pred: Tensor, delta: float = 1.0) -> Tensor:
    """Like Keras' own, in any dtype."""
    # TensorFlow would round a Python number to float32.
    delta = ops.convert_to_tensor(delta, dtype=y_pred.dtype)
    error = ops.abs(y_true - y_pred)
    return _mean(
        ops.where(
            error <= delta,
            ops.square(error) / 2,
            delta * error - ops.square(delta) / 2,
        )
    )


def _mean(values: Tensor) -> Tensor:
    # `ops.mean` of float64 is computed in float32 on JAX.
    count = ops.cast(ops.shape(values)[-1], values.dtype)
    return ops.sum(values, axis=-1) / count


# Keras' losses that square numbers with physical units, which can leave the
# range of float32, and the same losses in any dtype.
SQUARES = {
    keras.losses.mean_squared_error: mean_squared_error,
    keras.losses.huber: huber,
}
