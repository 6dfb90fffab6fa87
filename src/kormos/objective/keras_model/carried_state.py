"""Layers that begin a batch with the state left by the batch before."""

from collections.abc import Sequence

import numpy as np
from keras import tree

from kormos import backend
from kormos.data.memory import Data
from kormos.data.variables import is_seed
from kormos.data.variables import snapshot
from kormos.objective.keras_model.loss_terms import LossTerms
from kormos.objective.keras_model.stateless_model import StatelessModel
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor

# Two evaluations are the same up to this part of the largest number, because
# accelerators add in any order. Our choice, about a hundred roundings of
# float32: a state that matters changes the outputs by more.
_SAME = 1e-5


def carried(
    stateless: StatelessModel, terms: LossTerms, head: Data
) -> list[str]:
    """The paths of variables by which a batch changes the next one's loss.

    Args:
        stateless: the model, which knows the variables of its loss.
        terms: the terms of the loss.
        head: the rows of a chunk, as tensors.
    """
    # Seeds are frozen, so every batch begins with the same seed.
    assigned = [v for v in stateless.assigned_variables if not is_seed(v)]
    if not assigned:
        return []
    parts = snapshot(stateless.variables)
    frozen = snapshot(stateless.frozen_variables)
    term_factors = np.ones(len(terms.weights) + 1)

    def batch(
        frozen: list[Tensor], x: Structure, y: Structure, w: Structure
    ) -> tuple[list[Tensor], list[Tensor]]:
        with stateless.scope(parts, frozen) as scope:
            y_pred = stateless(x)
            loss = terms.total(x, y, y_pred, w, term_factors)
            frozen = [
                scope.get_current_value(v) for v in stateless.frozen_variables
            ]
        return [*tree.flatten(y_pred), loss], frozen

    def outputs(frozen: list[Tensor]) -> tuple[list[Array], list[Tensor]]:
        with backend.float64():
            found, left = backend.attempt(backend.once(batch), frozen, *head)
        return [backend.to_numpy(a) for a in found], left

    before, left = outputs(frozen)
    left = [
        new if any(v is a for a in assigned) else old
        for v, new, old in zip(
            stateless.frozen_variables, left, frozen, strict=True
        )
    ]
    after, _ = outputs(left)
    is_same = all(
        np.allclose(a, b, 0, _SAME * np.max(np.abs(a), initial=0), True)
        for a, b in zip(before, after, strict=True)
    )
    return [] if is_same else [v.path for v in assigned]


def refuse_carried(names: Sequence[str], rows: int, chunk: int) -> None:
    """Refuses a state that would pass from one batch to the next.

    Args:
        names: the paths of its variables.
        rows: the number of rows of data.
        chunk: the number of rows of a batch.

    Raises:
        ValueError: if there are more batches than one.
    """
    if rows > chunk:
        raise ValueError(
            "A full-batch loss is a sum over batches in any order. A batch "
            "cannot begin with the state in which another batch has left a "
            "layer, as in recurrent layers with `stateful=True`: build them "
            "with `stateful=False`, or put all rows into one batch. "
            f"Received: {', '.join(names)}, carried between batches of "
            f"{chunk} of {rows} rows"
        )
