"""What in layers and losses is narrower than float64."""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from kormos.float64.layer_calls import Call
from kormos.float64.layer_calls import Owner
from kormos.types import Structure
from kormos.types import Tensor


def narrow_calls(calls: Iterable[Call]) -> list[Call]:
    """The calls with floating-point results that are not in float64."""
    return [call for call in calls if narrow_leaves(call.outputs)]


def targets(owner: Owner) -> Iterator[tuple[Any, str]]:
    """The attributes with the dtypes to which a layer or a loss casts."""
    if isinstance(owner, keras.losses.Loss):
        yield owner, "_dtype"
    elif keras.backend.is_float_dtype(owner.compute_dtype):
        yield owner, "dtype_policy"
        for tensor in tree.flatten(getattr(owner, "inputs", None)):
            # The inputs of a functional model. Inputs of integers keep their
            # dtype.
            if isinstance(
                tensor, keras.KerasTensor
            ) and keras.backend.is_float_dtype(tensor.dtype):
                yield tensor, "_dtype"
                yield tensor._keras_history.operation, "_dtype"


def constants(owner: Owner) -> list[tuple[Owner, str]]:
    """The attributes of a layer or a loss that are arrays in float32."""
    return [
        (owner, name)
        for name, value in vars(owner).items()
        # On TensorFlow, `is_tensor` is true for a variable too.
        if not isinstance(value, keras.Variable)
        and (_is_narrow(value) or _is_narrow_array(value))
    ]


def narrow_leaves(outputs: Structure) -> list[Tensor]:
    return [leaf for leaf in tree.flatten(outputs) if _is_narrow(leaf)]


def _is_narrow_array(value: object) -> bool:
    if not isinstance(value, np.ndarray):
        return False
    return value.dtype.kind == "f" and value.dtype != "float64"


def _is_narrow(value: Any) -> bool:
    if not keras.ops.is_tensor(value):
        return False
    dtype = keras.backend.standardize_dtype(value.dtype)
    return keras.backend.is_float_dtype(dtype) and dtype != "float64"
