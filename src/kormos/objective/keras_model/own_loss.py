"""Whether a model's own `compute_loss` adds the losses of its layers."""

from typing import Any

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.variables import snapshot

# The part by which two gradients of the same may differ.
_ROUNDING = 1e-4


def adds_layer_losses(model_loss: Any, chunk: Any) -> bool:
    """Whether a `compute_loss` of its own adds what layers add, or nothing.

    Args:
        model_loss: a `ModelLoss` whose model has a `compute_loss` of its own.
        chunk: tensors `(x, y, weights)`.

    Raises:
        ValueError: naming the variables that it reads, if the loss depends on
            them in any other way than through the outputs.
    """
    x, y, w = chunk
    rng = np.random.default_rng(0)
    frozen = snapshot(model_loss.frozen_variables)
    # A penalty has no slope at weights of zero.
    parts = [
        part + ops.cast(0.1 * rng.standard_normal(part.shape), part.dtype)
        for part in snapshot(model_loss.variables)
    ]
    term_factors = ops.ones((1,), dtype=model_loss.output_dtype)

    def past_outputs(parts: Any) -> Any:
        with model_loss.scope(parts, frozen):
            y_pred = tree.map_structure(
                ops.stop_gradient, model_loss.predict(x)
            )
            return model_loss.output_loss(x, y, y_pred, w, term_factors)

    def by_layers(parts: Any) -> Any:
        with model_loss.scope(parts, frozen):
            model_loss.predict(x)
            return model_loss.layer_losses(x, term_factors)

    with backend.wide():
        found, wanted = (
            [
                ops.convert_to_numpy(part)
                for part in backend.once(backend.value_and_grad(fn))(parts)[1]
            ]
            for fn in (past_outputs, by_layers)
        )
    pairs = list(zip(found, wanted, strict=True))
    if not any(a.any() for a in found):
        return False
    size = max(np.abs(b).max(initial=0.0) for b in wanted)
    others = [
        variable.path
        for variable, (a, b) in zip(model_loss.variables, pairs, strict=True)
        if np.abs(a - b).max(initial=0.0) > _ROUNDING * size
    ]
    if not others:
        return True
    raise ValueError(
        "Gauss-Newton methods need a loss that depends on the variables "
        "through the model's outputs alone, besides regularizers and "
        "`add_loss`. Use these for what depends on weights, or 'lbfgs' or "
        f"another method. Received: {model_loss.own_name}, which reads "
        f"{', '.join(others)}"
    )
