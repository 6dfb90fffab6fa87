"""Leads `keras.Model.compile` and `fit` to kormos: the one patch of Keras.

For every optimizer that is not of kormos, the functions that Keras defines
run, unchanged.
"""

import functools
import inspect

import keras

from kormos import optimizers
from kormos.fit import fit
from kormos.objective.model import remember_loss_weights
from kormos.optimizers.base import BatchOptimizer


def install():
    """Wraps three methods of `keras.Model`, once."""
    if getattr(keras.Model.fit, "_is_kormos", False):
        return
    for name, wrap in _WRAPPERS.items():
        wrapper = wrap(getattr(keras.Model, name))
        wrapper._is_kormos = True
        setattr(keras.Model, name, wrapper)


def _wrap_compile(stock):
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def compile(self, *args, **kwargs):
        arguments = signature.bind(self, *args, **kwargs).arguments
        optimizer = arguments.get("optimizer")
        if optimizers.is_name(optimizer):
            optimizer = optimizers.get(optimizer)
            arguments["optimizer"] = optimizer
        if isinstance(optimizer, BatchOptimizer):
            # Float16 losses are refused by `fit`, with a reason.
            arguments["auto_scale_loss"] = False
        stock(**arguments)
        remember_loss_weights(self, arguments.get("loss_weights"))
        if isinstance(optimizer, BatchOptimizer) and self.built:
            # A file of the model restores only the state that is built.
            optimizer.build(self.trainable_variables)

    return compile


def _wrap_fit(stock):
    @functools.wraps(stock)
    def kormos_fit(self, *args, **kwargs):
        if isinstance(getattr(self, "optimizer", None), BatchOptimizer):
            return fit(self, *args, **kwargs)
        return stock(self, *args, **kwargs)

    return kormos_fit


def _wrap_train_on_batch(stock):
    @functools.wraps(stock)
    def train_on_batch(self, *args, **kwargs):
        optimizer = getattr(self, "optimizer", None)
        if isinstance(optimizer, BatchOptimizer):
            # On JAX, an error inside the stock step would cost the weights.
            optimizer.apply()
        return stock(self, *args, **kwargs)

    return train_on_batch


_WRAPPERS = {
    "compile": _wrap_compile,
    "fit": _wrap_fit,
    "train_on_batch": _wrap_train_on_batch,
}
