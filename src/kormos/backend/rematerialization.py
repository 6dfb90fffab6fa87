"""Turns off Keras' rematerialization while variables have other values.

PyTorch and TensorFlow compute a rematerialized function again while they
differentiate it. By then the scope in which the variables had other values has
ended. They would use the values outside of it, and the gradient would be that
of another point. JAX traces the function once and is not affected.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras

try:
    from keras.src import backend
except ImportError:
    # Keras has changed. The tests of rematerialization will fail.
    backend = None


def install() -> None:
    """Makes `keras.remat` call functions once in a `keras.StatelessScope`."""
    # Older versions of Keras have no `remat`.
    stock = getattr(getattr(backend, "core", None), "remat", None)
    is_traced = keras.backend.backend() == "jax"
    if stock is None or is_traced or getattr(stock, "_is_kormos", False):
        return

    @functools.wraps(stock)
    def remat(f: Callable[..., Any]) -> Callable[..., Any]:
        rematerialized = stock(f)

        @functools.wraps(f)
        def call(*args: Any, **kwargs: Any) -> Any:
            fn = f if backend.in_stateless_scope() else rematerialized
            return fn(*args, **kwargs)

        return call

    wrapper: Any = remat
    wrapper._is_kormos = True
    backend.core.remat = wrapper
