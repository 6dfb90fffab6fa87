"""Keras' rematerialization where variables stand for other values.

PyTorch and TensorFlow compute such a function anew while they differentiate,
when an evaluation at other values is over: they would take the variables as
they are, and the gradient would be that of another point. JAX has traced it.
"""

import functools

import keras

try:
    from keras.src import backend
except ImportError:
    # Keras has changed: tests of rematerialization say so.
    backend = None


def install():
    """Has functions in a `keras.StatelessScope` computed once, for good."""
    # Older versions of Keras have none.
    stock = getattr(getattr(backend, "core", None), "remat", None)
    is_traced = keras.backend.backend() == "jax"
    if stock is None or is_traced or getattr(stock, "_is_kormos", False):
        return

    @functools.wraps(stock)
    def remat(f):
        rematerialized = stock(f)

        @functools.wraps(f)
        def call(*args, **kwargs):
            fn = f if backend.in_stateless_scope() else rematerialized
            return fn(*args, **kwargs)

        return call

    remat._is_kormos = True
    backend.core.remat = remat
