"""Which layers and losses a function calls."""

import contextlib
import functools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import keras

from kormos.types import Structure

_lock = threading.RLock()

# The objects that compute in their own dtype when they are called.
Owner: TypeAlias = keras.Layer | keras.losses.Loss


class Call(NamedTuple):
    """A call of a Keras layer or loss.

    Attributes:
        owner: the `keras.Layer` or `keras.losses.Loss`.
        outputs: the value of `keep` for the outputs, or `None` after an error.
        callers: the layers and losses whose calls were running, the outermost
            first.
        error: the exception that the call raised, or `None`.
    """

    owner: Owner
    outputs: Structure
    callers: tuple[Owner, ...]
    error: Exception | None = None


@contextlib.contextmanager
def recorded_calls(
    keep: Callable[[Structure], Structure] = lambda outputs: outputs,
) -> Iterator[list[Call]]:
    """A scope that notes every call that this thread makes within it.

    Args:
        keep: function of the outputs of a call, called at once. The `Call`
            keeps what it returns.

    Yields:
        The list of `Call`s. A call comes after the calls within it.
    """
    calls: list[Call] = []
    running: list[Owner] = []
    thread = threading.get_ident()

    def noting(stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def call(self: Owner, *args: Any, **kwargs: Any) -> Any:
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

    # Keras offers no hook for this.
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
