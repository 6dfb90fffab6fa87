"""The range of float32: what is in small or large units, scaled into it.

A gradient that goes back through layers in float32 is a product of slopes; in
units of 1e-20 it vanishes there, in units of 1e20 it overflows. A loss times a
power of two has all slopes times that, to the bit.
"""

import math

import keras
import numpy as np
from keras import ops

from kormos.data.memory import leaves

# Slopes between two to the power of minus this, and of this, are left alone.
_MODERATE = 20
# The largest power that float32 has room for, and for what it multiplies.
_LARGEST = 100


def unit_for(slope, room=0):
    """A power of two by which to multiply a loss that is differentiated.

    Args:
        slope: the size of the loss's slopes in the outputs.
        room: the power of two that the slopes are brought to: above one where
            they are about to become smaller.
    """
    if not 0 < slope < math.inf:
        return 1.0
    _, exponent = math.frexp(slope)
    if abs(exponent) <= _MODERATE:
        return 1.0
    return 2.0 ** max(-_LARGEST, min(room - exponent, _LARGEST))


def size_of(vector):
    """The power of two at the largest entry of an array; one for zero."""
    size = float(np.abs(vector).max(initial=0.0))
    if not 0 < size < math.inf:
        return 1.0
    return 2.0 ** (math.frexp(size)[1] - 1)


def largest(structure, default=0.0):
    """The largest size of the floating-point numbers in arrays."""
    sizes = [
        float(np.max(np.abs(a), initial=0, where=np.isfinite(a)))
        for a in leaves(structure)
        if a.dtype.kind in "fc" and a.size
    ]
    return max(sizes, default=default)


def mean_squared_error(y_true, y_pred):
    return _mean(ops.square(y_true - y_pred))


def huber(y_true, y_pred, delta=1.0):
    # A bare number would be rounded to float32 on TensorFlow.
    delta = ops.convert_to_tensor(delta, dtype=y_pred.dtype)
    error = ops.abs(y_true - y_pred)
    return _mean(
        ops.where(
            error <= delta,
            ops.square(error) / 2,
            delta * error - ops.square(delta) / 2,
        )
    )


def _mean(values):
    # `ops.mean` of float64 is computed in float32 on JAX.
    count = ops.cast(ops.shape(values)[-1], values.dtype)
    return ops.sum(values, axis=-1) / count


# Keras' losses that square what has units, and the same in any dtype.
SQUARES = {
    keras.losses.mean_squared_error: mean_squared_error,
    keras.losses.huber: huber,
}
