"""Models that need a certain number of rows."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def naming_rows(
    model: keras.Model, rows: int, others: int | None = None
) -> Iterator[None]:
    """A scope that names the number of rows if they are the reason of an error.

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
            "If a model or its loss needs a certain number of rows, every "
            f"chunk must have that number: pass `batch_size={needed}` and a "
            "multiple of that many rows, or build the model without "
            f"`batch_shape`. Received: {model.name}, which {known} and fails "
            f"on a chunk of {rows}, with: {error}"
        ) from error


def _batch_rows(model: keras.Model) -> int | None:
    """The number of rows that the model's inputs are built for, or `None`."""
    # A subclassed model has no symbolic inputs.
    inputs = getattr(model, "inputs", None) or ()
    return next((i.shape[0] for i in inputs if i.shape[0]), None)
