"""Makes `keras.Model.compile` and `fit` use kormos, by a patch of Keras.

With any optimizer that does not belong to kormos, Keras' own functions run
unchanged.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras

from kormos import optimizers
from kormos._fit import fit
from kormos.objective.functions import predictions
from kormos.objective.keras_model.loss_weights import remember_loss_weights
from kormos.objective.keras_model.own_training import forget_step
from kormos.objective.keras_model.program import forget_programs
from kormos.optimizers.base import BatchOptimizer


def install() -> None:
    """Wraps methods of `keras.Model`, once."""
    if getattr(keras.Model.fit, "_is_kormos", False):
        return
    for name, wrap in _WRAPPERS.items():
        # The method is replaced in the class that defines it. If a subclass
        # had its own `compile`, Keras would take it for a custom one and
        # would not restore it when it loads a model.
        owner = next(c for c in keras.Model.__mro__ if name in vars(c))
        wrapper: Any = wrap(vars(owner)[name])
        wrapper._is_kormos = True
        setattr(owner, name, wrapper)


def _wrap_compile(stock: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def compile(self: keras.Model, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        name = bound.arguments.get("optimizer")
        if isinstance(name, str):
            optimizers.check_compiled(name)
        if optimizers.is_name(name):
            bound.arguments["optimizer"] = optimizers.get(name)
        stock(*bound.args, **bound.kwargs)
        forget_programs(self)
        forget_step(self)
        remember_loss_weights(self, bound.arguments.get("loss_weights"))
        inner = getattr(self.optimizer, "inner_optimizer", None)
        if isinstance(inner, BatchOptimizer):
            # For float16, Keras wraps the optimizer in a `LossScaleOptimizer`,
            # so that its own `fit` would run. The `fit` of kormos refuses
            # float16.
            self.optimizer = inner
        if isinstance(self.optimizer, BatchOptimizer) and self.built:
            # Keras restores the state of an optimizer from a file only if the
            # optimizer is built.
            self.optimizer.build(self.trainable_variables)

    return compile


def _wrap_fit(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def kormos_fit(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(self, "optimizer", None), BatchOptimizer):
            return fit(self, *args, **kwargs)
        return stock(self, *args, **kwargs)

    return kormos_fit


def _wrap_train_on_batch(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def train_on_batch(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        optimizer = getattr(self, "optimizer", None)
        if isinstance(optimizer, BatchOptimizer):
            # The error is raised here, because an error in Keras' step would
            # lose the weights on JAX.
            optimizer.apply()
        return stock(self, *args, **kwargs)

    return train_on_batch


_WRAPPERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "compile": _wrap_compile,
    "fit": _wrap_fit,
    "train_on_batch": _wrap_train_on_batch,
    **dict.fromkeys(predictions.METHODS, predictions.wrap),
}
