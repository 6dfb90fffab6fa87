"""The `loss_weights` of a model, which Keras does not keep as an attribute."""

import warnings

import keras

from kormos.types import Structure

# An attribute of a model that Keras neither tracks nor saves.
_LOSS_WEIGHTS = "_kormos_loss_weights"


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
