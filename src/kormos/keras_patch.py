"""Leads `keras.Model.compile` and `fit` to kormos, by a patch of Keras.

For every optimizer that is not of kormos, the functions that Keras defines
run, unchanged.
"""

import functools
import inspect

import keras

from kormos import optimizers
from kormos._fit import fit
from kormos.objective.functions import predictions
from kormos.objective.keras_model.loss import remember_loss_weights
from kormos.objective.keras_model.program_cache import forget_programs
from kormos.optimizers.base import BatchOptimizer


def install():
    """Wraps methods of `keras.Model`, once."""
    if getattr(keras.Model.fit, "_is_kormos", False):
        return
    for name, wrap in _WRAPPERS.items():
        # In the class that defines it: Keras takes a `compile` that differs
        # from its base class's for a custom one, and does not load it.
        owner = next(c for c in keras.Model.__mro__ if name in vars(c))
        wrapper = wrap(vars(owner)[name])
        wrapper._is_kormos = True
        setattr(owner, name, wrapper)


def _wrap_compile(stock):
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def compile(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        if optimizers.is_name(bound.arguments.get("optimizer")):
            name = bound.arguments["optimizer"]
            bound.arguments["optimizer"] = optimizers.get(name)
        stock(*bound.args, **bound.kwargs)
        forget_programs(self)
        remember_loss_weights(self, bound.arguments.get("loss_weights"))
        inner = getattr(self.optimizer, "inner_optimizer", None)
        if isinstance(inner, BatchOptimizer):
            # Stock `fit` would run a scaled one; ours refuses float16.
            self.optimizer = inner
        if isinstance(self.optimizer, BatchOptimizer) and self.built:
            # A file of the model restores only the state that is built.
            self.optimizer.build(self.trainable_variables)

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
    **dict.fromkeys(predictions.METHODS, predictions.wrap),
}
