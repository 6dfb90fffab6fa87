"""Whether a model's own `compute_loss` adds the losses of its layers."""

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.variables import snapshot
from kormos.objective.compiled import Chunk
from kormos.objective.keras_model.loss import ModelLoss
from kormos.types import Scalar
from kormos.types import Tensor

# Two gradients are the same if they differ by no more than this part of the
# largest entry. Our choice, a thousand roundings of float32: only a smaller
# additional term of `compute_loss` would be missed.
_SAME = 1e-4


def adds_layer_losses(model_loss: ModelLoss, chunk: Chunk) -> bool:
    """Whether a model's own `compute_loss` adds the losses of layers.

    Args:
        model_loss: the loss of a model with its own `compute_loss`.
        chunk: tensors `(x, y, weights)`.

    Raises:
        ValueError: if the loss depends on variables in any other way than
            through the outputs. It names these variables.
    """
    stateless, terms = model_loss.stateless, model_loss.terms
    x, y, w = chunk
    rng = np.random.default_rng(0)
    frozen = snapshot(stateless.frozen_variables)
    # Weights are moved, because a penalty has no gradient at weights of zero.
    parts = [
        part + ops.cast(0.1 * rng.standard_normal(part.shape), part.dtype)
        for part in snapshot(stateless.variables)
    ]
    term_factors = terms.ones(model_loss.outputs.dtype)

    def past_outputs(parts: list[Tensor]) -> Scalar:
        with stateless.scope(parts, frozen):
            y_pred = tree.map_structure(ops.stop_gradient, stateless(x))
            return terms.of_outputs(x, y, y_pred, w, term_factors)

    def by_layers(parts: list[Tensor]) -> Scalar:
        with stateless.scope(parts, frozen):
            stateless(x)
            return terms.of_layers(x, term_factors)

    with backend.float64():
        found, wanted = (
            [
                backend.to_numpy(part)
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
        for variable, (a, b) in zip(stateless.variables, pairs, strict=True)
        if np.abs(a - b).max(initial=0.0) > _SAME * size
    ]
    if not others:
        return True
    raise ValueError(
        "Gauss-Newton methods need a loss that depends on the variables "
        "only through the model's outputs, besides regularizers and "
        "`add_loss`. Use these for terms that depend on weights, or use "
        "'lbfgs' or another method. "
        f"Received: {terms.own_name}, which reads "
        f"{', '.join(others)}"
    )
