"""Draws new weights of a model, with the initializers of its layers."""

from collections.abc import Iterator

import keras
import numpy as np

from kormos import backend
from kormos.types import Array

# How layers call the initializer of a variable.
_SUFFIX = "_initializer"


def draw_weights(model: keras.Model, rng: np.random.Generator) -> list[Array]:
    """Draws values of the trainable variables.

    A variable keeps its value if its layer has no initializer of its name,
    such as `kernel_initializer` for `kernel`.

    Args:
        model: the built model.
        rng: the random generator that draws the initializers' seeds.

    Returns:
        An array for each of `model.trainable_variables`.
    """
    initializers = dict(_initializers(model))
    values = []
    for variable in model.trainable_variables:
        initializer = initializers.get(id(variable))
        if initializer is None:
            values.append(np.array(backend.to_numpy(variable)))
            continue
        seeded = _with_seed(initializer, int(rng.integers(2**31)))
        values.append(
            np.array(backend.to_numpy(seeded(variable.shape, "float32")))
        )
    return values


def _initializers(
    model: keras.Model,
) -> Iterator[tuple[int, keras.initializers.Initializer]]:
    """Yields the id of each variable and its initializer."""
    for layer in model._flatten_layers():
        for name, initializer in vars(layer).items():
            if not name.endswith(_SUFFIX):
                continue
            own = name.removesuffix(_SUFFIX)
            for attribute in (own, f"_{own}"):
                variable = getattr(layer, attribute, None)
                if isinstance(variable, keras.Variable):
                    yield id(variable), keras.initializers.get(initializer)


def _with_seed(
    initializer: keras.initializers.Initializer, seed: int
) -> keras.initializers.Initializer:
    config = initializer.get_config()
    if "seed" not in config:
        return initializer
    return type(initializer).from_config({**config, "seed": seed})
