"""Which layers and losses a function calls."""

import contextlib
import functools
import threading
from typing import Any
from typing import NamedTuple

import keras

_lock = threading.RLock()


class Call(NamedTuple):
    """A call of a Keras layer or loss.

    Attributes:
        owner: the `keras.Layer` or `keras.losses.Loss`.
        outputs: what is kept of what it returned, in any structure.
        callers: those within whose calls it was called, the outermost first.
        error: what it raised instead, or `None`.
    """

    owner: Any
    outputs: Any
    callers: tuple
    error: Exception | None = None


@contextlib.contextmanager
def recorded_calls(keep=lambda outputs: outputs):
    """A scope that notes every call that this thread makes within it.

    Args:
        keep: function of what a call returns, called at once: what a `Call`
            has of its outputs.

    Yields:
        The list of `Call`s, inner ones before those that they are part of.
    """
    calls, thread, running = [], threading.get_ident(), []

    def noting(stock):
        @functools.wraps(stock)
        def call(self, *args, **kwargs):
            if threading.get_ident() != thread:
                return stock(self, *args, **kwargs)
            callers = tuple(running)
            running.append(self)
            try:
                outputs = stock(self, *args, **kwargs)
            except Exception as error:
                calls.append(Call(self, None, callers, error))
                raise
            finally:
                running.pop()
            calls.append(Call(self, keep(outputs), callers))
            return outputs

        return call

    # Keras has no hook of its own for this.
    owners = (keras.Layer, keras.losses.Loss)
    with _lock:
        stock = [owner.__call__ for owner in owners]
        try:
            for owner in owners:
                owner.__call__ = noting(owner.__call__)
            yield calls
        finally:
            for owner, call in zip(owners, stock, strict=True):
                owner.__call__ = call
