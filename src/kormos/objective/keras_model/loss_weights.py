"""The `loss_weights` of a model, which Keras does not keep as an attribute."""

import contextlib
import warnings
from collections.abc import Iterator

import keras

from kormos.objective.keras_model.own_training import forget_step
from kormos.types import Structure

# An attribute of a model that Keras neither tracks nor saves.
_LOSS_WEIGHTS = "_kormos_loss_weights"
# Another such attribute: Keras' loss of `compile`, and the losses with other
# weights.
_LOSSES = "_kormos_losses"


def remember_loss_weights(model: keras.Model, weights: Structure) -> None:
    """Notes the `loss_weights` of `compile`."""
    object.__setattr__(model, _LOSS_WEIGHTS, (weights,))


def loss_weights(model: keras.Model) -> Structure:
    """The `loss_weights` that the model is compiled with."""
    remembered = model.__dict__.get(_LOSS_WEIGHTS)
    if remembered is not None:
        return remembered[0]
    # The model was compiled before kormos was imported.
    with warnings.catch_warnings():
        # Keras warns of lambdas among the losses, which are not saved here.
        warnings.simplefilter("ignore")
        config = model.get_compile_config() or {}
    return keras.saving.deserialize_keras_object(config.get("loss_weights"))


@contextlib.contextmanager
def weighted(model: keras.Model, weights: Structure) -> Iterator[None]:
    """A scope in which a model is compiled with other `loss_weights`.

    Keras' own `train_step` and `evaluate` follow them.

    Args:
        model: the compiled model.
        weights: see `compile`.

    Raises:
        ValueError: if the model is compiled without a loss.
    """
    own = model._compile_loss
    if own is None:
        raise ValueError(
            "The `loss_weights` of a stage need a model that is compiled with "
            f"`loss`. Received: loss_weights={weights!r}, and loss=None"
        )
    remembered = loss_weights(model)
    other = _loss_with(model, weights)
    _put(model, other, weights)
    try:
        yield
    finally:
        # A callback may have compiled the model again.
        if model._compile_loss is other:
            _put(model, own, remembered)


def _loss_with(model: keras.Model, weights: Structure) -> keras.losses.Loss:
    """Keras' loss of the model with other weights, one object for each."""
    own = model._compile_loss
    known, losses = model.__dict__.get(_LOSSES, (None, {}))
    if known is not own:
        losses = {}
        object.__setattr__(model, _LOSSES, (own, losses))
    key = repr(weights)
    if key not in losses:
        losses[key] = type(own)(
            model.loss, weights, output_names=own.output_names
        )
    return losses[key]


def _put(
    model: keras.Model, loss: keras.losses.Loss, weights: Structure
) -> None:
    remember_loss_weights(model, weights)
    object.__setattr__(model, "_compile_loss", loss)
    # Keras' compiled steps contain the loss.
    model.train_function = model.test_function = None
    forget_step(model)
