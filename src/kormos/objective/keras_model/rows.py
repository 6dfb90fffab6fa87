"""Models that need a certain number of rows, or carry a state between them."""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.memory import Data
from kormos.data.variables import is_seed
from kormos.data.variables import snapshot
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor

if TYPE_CHECKING:
    from kormos.objective.keras_model.loss import ModelLoss

# Two evaluations are the same up to this part of the largest number, because
# accelerators add in any order. This is a choice of ours, about a hundred
# roundings of float32: a state that matters changes the outputs by more.
_SAME = 1e-5


@contextlib.contextmanager
def naming_rows(
    model: keras.Model, rows: int, others: int | None = None
) -> Iterator[None]:
    """A scope that explains an error by the number of rows.

    Args:
        model: the model that is called in the scope.
        rows: the number of rows that it is called on.
        others: another number of rows, on which it has worked.

    Raises:
        ValueError: if the call fails, and the model was built for another
            number of rows, or has worked on one.
    """
    try:
        yield
    except Exception as error:
        built = _batch_rows(model)
        needed = built or others
        if needed in (None, rows):
            raise
        known = f"{'is built for' if built else 'works on'} {needed} rows"
        raise ValueError(
            "Where a model or its loss needs a certain number of rows, every "
            f"chunk must have it: give `batch_size={needed}` and a multiple of "
            "that many rows, or build the model without `batch_shape`. "
            f"Received: {model.name}, which {known} and fails on a chunk of "
            f"{rows}, with: {error}"
        ) from error


def _batch_rows(model: keras.Model) -> int | None:
    """The number of rows that the model's inputs are built for, or `None`."""
    # A subclassed model has no symbolic inputs.
    inputs = getattr(model, "inputs", None) or ()
    return next((i.shape[0] for i in inputs if i.shape[0]), None)


def carried(
    model_loss: "ModelLoss", assigned: list[keras.Variable], head: Data
) -> list[str]:
    """The paths of variables by which a batch changes the next one's loss.

    Args:
        model_loss: the model's loss.
        assigned: the frozen variables that a batch assigns.
        head: the rows of a chunk, as tensors.
    """
    # Seeds are frozen: every batch begins with the same.
    assigned = [v for v in assigned if not is_seed(v)]
    if not assigned:
        return []
    parts = snapshot(model_loss.variables)
    frozen = snapshot(model_loss.frozen_variables)
    term_factors = np.ones(len(model_loss.term_weights) + 1)

    def batch(
        frozen: list[Tensor], x: Structure, y: Structure, w: Structure
    ) -> tuple[list[Tensor], list[Tensor]]:
        with model_loss.scope(parts, frozen) as scope:
            y_pred = model_loss.predict(x)
            loss = model_loss.loss_of(x, y, y_pred, w, term_factors)
            frozen = [
                scope.get_current_value(v) for v in model_loss.frozen_variables
            ]
        return [*tree.flatten(y_pred), loss], frozen

    def outputs(frozen: list[Tensor]) -> tuple[list[Array], list[Tensor]]:
        with backend.wide():
            found, left = backend.attempt(backend.once(batch), frozen, *head)
        return [ops.convert_to_numpy(a) for a in found], left

    before, left = outputs(frozen)
    left = [
        new if any(v is a for a in assigned) else old
        for v, new, old in zip(
            model_loss.frozen_variables, left, frozen, strict=True
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
            "A full-batch loss is a sum over batches in any order. No batch "
            "can begin with the state in which another one leaves a layer, as "
            "recurrent layers with `stateful=True` do: build them with "
            "`stateful=False`, or give all rows in one batch. "
            f"Received: {', '.join(names)}, carried between batches of {chunk} "
            f"of {rows} rows"
        )
