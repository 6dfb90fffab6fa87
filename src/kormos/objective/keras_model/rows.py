"""Models that need a certain number of rows, or carry a state between them."""

import contextlib

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.variables import is_seed
from kormos.data.variables import snapshot

# By which part of the largest number outputs may differ of a state that does
# not matter: accelerators add in any order.
_SAME = 1e-5


@contextlib.contextmanager
def naming_rows(model, rows, others=None):
    """A scope that says by name that a model fails for its number of rows.

    Args:
        model: the model.
        rows: the number of rows that it is called on.
        others: another number of rows, on which it has worked.

    Raises:
        ValueError: if it fails, and was built for another number of rows, or
            has worked on one.
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
            f"chunk must have it: give `batch_size={needed}` and rows that "
            "this divides, or build the model without `batch_shape`. "
            f"Received: {model.name}, which {known} and fails on a chunk of "
            f"{rows}, with: {error}"
        ) from error


def _batch_rows(model):
    """The rows that the model's inputs are built for, or `None`."""
    # A model of a subclass has none.
    inputs = getattr(model, "inputs", None) or ()
    return next((i.shape[0] for i in inputs if i.shape[0]), None)


def carried(model_loss, assigned, head):
    """The paths of variables by which a batch changes the next one's loss.

    Args:
        model_loss: the `ModelLoss`.
        assigned: the variables that a batch assigns, of those that are frozen.
        head: the rows of a chunk, a `Data` of tensors.
    """
    # A fit freezes seeds, and no batch leaves the next one any.
    assigned = [v for v in assigned if not is_seed(v)]
    if not assigned:
        return []
    parts = snapshot(model_loss.variables)
    frozen = snapshot(model_loss.frozen_variables)
    term_factors = np.ones(len(model_loss.term_weights) + 1)

    def batch(frozen, x, y, w):
        with model_loss.scope(parts, frozen) as scope:
            y_pred = model_loss.predict(x)
            loss = model_loss.loss_of(x, y, y_pred, w, term_factors)
            frozen = [
                scope.get_current_value(v) for v in model_loss.frozen_variables
            ]
        return [*tree.flatten(y_pred), loss], frozen

    def outputs(frozen):
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


def refuse_carried(names, rows, chunk):
    """Refuses a state that would pass from one batch to the next.

    Args:
        names: the paths of its variables.
        rows: the number of rows.
        chunk: how many of them a batch has.

    Raises:
        ValueError: if there are more batches than one.
    """
    if rows > chunk:
        raise ValueError(
            "A full-batch loss is a sum over batches, none of which can begin "
            "with the state that another one leaves, as recurrent layers with "
            "`stateful=True` do: build them with `stateful=False`, or give "
            f"all rows in one batch. Received: {', '.join(names)}, carried "
            f"between batches of {chunk} of {rows} rows"
        )
