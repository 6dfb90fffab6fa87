"""An epoch of Keras' own training, on shuffled batches of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kormos import backend
from kormos.data.memory import Data

# An attribute of a model that Keras neither tracks nor saves: the optimizer
# that trained it last, and its compiled step.
_TRAINED = "_kormos_trained"
_BATCH_ROWS = 32


def train_epoch(
    model: keras.Model,
    data: Data,
    optimizer: keras.optimizers.Optimizer,
    batch_size: int | None,
    rng: np.random.Generator,
) -> None:
    """Trains a model for an epoch by its own `train_step`.

    Args:
        model: the compiled model.
        data: all rows.
        optimizer: the Keras optimizer, built for the model's variables.
        batch_size: the rows of a batch. Defaults to 32, as in Keras.
        rng: the random generator that draws the order of the rows. Within a
            batch, rows keep their order, so that sums are rounded in the same
            way.
    """
    batch_size = batch_size or _BATCH_ROWS
    if batch_size < data.rows:
        order = rng.permutation(data.rows)
        data = data.map(lambda array: array[order])
    x, y, sample_weight = data
    with _trained_by(model, optimizer):
        keras.Model.fit(
            model,
            x,
            y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            shuffle=False,
            verbose=0,
            callbacks=keras.callbacks.CallbackList([], model=model),
        )


def forget_step(model: keras.Model) -> None:
    """Drops the compiled step: the model has another loss or other metrics."""
    object.__setattr__(model, _TRAINED, (None, None))


@contextlib.contextmanager
def _trained_by(
    model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> Iterator[None]:
    """A scope in which a model has another optimizer.

    The attributes in which Keras keeps the state of a fit are restored.
    """
    names = "optimizer", "train_function", "stop_training", "training"
    earlier = {n: getattr(model, n) for n in names if hasattr(model, n)}
    own: Any = getattr(optimizer, "finalize_variable_values", None)
    if getattr(model, _TRAINED, (None, None))[0] is not optimizer:
        object.__setattr__(model, _TRAINED, (optimizer, None))
    before = _values(model)
    try:
        model.optimizer = optimizer
        # So the step is not traced again in each epoch.
        model.train_function = getattr(model, _TRAINED)[1]
        # An optimizer's averages of weights only become the weights at the end
        # of the run.
        optimizer.finalize_variable_values = _do_nothing
        yield
        object.__setattr__(model, _TRAINED, (optimizer, model.train_function))
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise
    finally:
        optimizer.finalize_variable_values = own
        for name, value in earlier.items():
            setattr(model, name, value)


def _values(model: keras.Model) -> list[tuple[keras.Variable, Any]]:
    """The values that an interrupted epoch would lose.

    On JAX a step takes the variables' memory for its results.
    """
    if keras.backend.backend() != "jax":
        return []
    variables = [*model.variables, *model.metrics_variables]
    return [(v, np.array(backend.to_numpy(v))) for v in variables]


def _do_nothing(*args: Any) -> None:
    del args
