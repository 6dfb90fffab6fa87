"""Arguments of optimizers, as Keras writes them into files."""

import types
from typing import Any

import keras
import numpy as np
import scipy.optimize

from kormos.warn import warn


def by_path(bounds: Any) -> Any:
    """Bounds with the paths of variables in place of the variables."""
    if isinstance(bounds, scipy.optimize.Bounds):
        pair = bounds.lb, bounds.ub
        if max(map(np.size, pair)) == 1:
            return {".*": tuple(np.ravel(side).tolist()[0] for side in pair)}
        return np.stack(np.broadcast_arrays(*pair), axis=1)
    if isinstance(bounds, (list, tuple)):
        return [(getattr(key, "path", key), pair) for key, pair in bounds]
    return bounds


def saveable(value: Any, name: str) -> Any:
    """`value`, or `None` if it contains a function that cannot be saved."""
    leaves = keras.tree.flatten(value)
    is_of_scipy = any(
        isinstance(leaf, scipy.optimize.LinearConstraint) for leaf in leaves
    )
    has_names = all(_has_name(leaf) for leaf in leaves if callable(leaf))
    if has_names and not is_of_scipy:
        return value
    warn(
        f"`{name}` holds a lambda, a local function, a method or an object "
        "of SciPy's, which cannot be saved: set it again on the optimizer of "
        "a loaded or cloned model."
    )
    return None


def loaded(value: Any, name: str, custom_objects: dict[str, Any] | None) -> Any:
    """The argument of an optimizer, from its entry in a configuration."""
    try:
        return keras.saving.deserialize_keras_object(
            value, custom_objects=custom_objects
        )
    except TypeError:
        if name not in ("pretrain_fn", "constraints"):
            raise
    # Loading the weights is more important than the function.
    warn(
        f"`{name}` holds a function that is unknown here: register it with "
        "`keras.saving.register_keras_serializable`, pass it in "
        "`custom_objects`, or set it again on the optimizer. "
        f"Received: {name}={value}",
    )
    return None


def _has_name(fn: Any) -> bool:
    if not isinstance(fn, types.FunctionType):
        return hasattr(fn, "get_config")
    is_registered = keras.saving.get_registered_name(fn) != fn.__name__
    return is_registered or "<" not in fn.__qualname__
