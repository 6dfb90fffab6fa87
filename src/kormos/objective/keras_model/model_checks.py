"""Checks of a model before its loss is compiled."""

from typing import Any

import keras

from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.loss_terms import overrides
from kormos.objective.keras_model.rows import naming_rows
from kormos.objective.keras_model.training_data import TrainingData
from kormos.warn import warn


def check_has_loss(model: Any, is_given: bool = False, also: str = "") -> None:
    """Refuses an argument that is not a model, or that has no loss.

    Args:
        model: the argument.
        is_given: whether the loss is given apart from the model.
        also: what else the user may do, for the message.

    Raises:
        ValueError: if it is not a model, or has no loss.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Argument `model` must be a `keras.Model`. "
            f"Received: {model!r} (of type {type(model).__name__})"
        )
    if not (is_given or model.compiled):
        raise ValueError(
            f"The model has no loss yet: {also}call `model.compile(loss=...)` "
            f"first. Received: {model.name}, not compiled"
        )


def check_model(model: Any) -> None:
    """Refuses an argument that is not a compiled model, and float16."""
    check_has_loss(model)
    if any(part.compute_dtype == "float16" for part in model._flatten_layers()):
        raise ValueError(
            "float16 gradients need loss scaling, which changes the loss "
            "between iterates, so that a full-batch method cannot use it. "
            "Use the 'float32', 'float64' or 'mixed_bfloat16' policy. "
            f"Received: {model.name} with layers that compute in float16"
        )


def warn_of_custom_steps(model: keras.Model) -> None:
    """Warns of steps for Keras' own training that change the loss."""
    names = [n for n in ("train_step", "test_step") if overrides(model, n)]
    if names:
        warn(
            f"{model.name} defines {' and '.join(f'`{n}`' for n in names)}, "
            "which kormos does not call: its methods minimize what "
            "`compute_loss` returns. If you want to minimize another loss, "
            "override `compute_loss`, or use `kormos.minimize`.",
        )


def build(model: keras.Model, data: TrainingData) -> None:
    """Builds a model that is not built yet, by a call on rows of the data.

    Args:
        model: the model.
        data: the data.

    Raises:
        ValueError: if the model cannot be called on these rows.
    """
    if not is_built(model):
        head = data.head(None)
        with naming_rows(model, leading_size(head.x)):
            # A call in training would update moving averages.
            model(head.x, training=False)


def is_built(model: keras.Layer) -> bool:
    """Whether all of a model's layers are built.

    Keras says that a `Sequential` is built as soon as one of its layers is.
    """
    parts = model.layers if isinstance(model, keras.Model) else ()
    return model.built and all(map(is_built, parts))
