"""Refuses `model.predict` and similar methods in a function to differentiate.

They return NumPy arrays or numbers, computed with the present values of the
variables, which carry no derivatives.
"""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import keras
from keras import tree

# The kind of result of each method.
METHODS = {
    "predict": "NumPy arrays, which carry no derivatives",
    "predict_on_batch": "NumPy arrays, which carry no derivatives",
    "evaluate": "numbers, which carry no derivatives",
    "test_on_batch": "numbers, which carry no derivatives",
}

# The variables that are fitted by the function that runs, or `None`.
_fitted: ContextVar[Sequence[keras.Variable] | None] = ContextVar(
    "fitted", default=None
)


class Prediction(ValueError):
    """A call that is not allowed in a function to differentiate.

    Its message is the name of the method.
    """


@contextlib.contextmanager
def refusing_predictions(variables: Sequence[keras.Variable]) -> Iterator[None]:
    """A scope in which models with some variables do not predict.

    Args:
        variables: the variables to fit.

    Raises:
        Prediction: if such a model predicts, or another model cannot.
    """
    token = _fitted.set(variables)
    try:
        yield
    finally:
        _fitted.reset(token)


def wrap(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a method of `keras.Model` to obey `refusing_predictions`."""

    @functools.wraps(stock)
    def method(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        fitted = _fitted.get()
        if fitted is None:
            return stock(self, *args, **kwargs)
        ids = {id(variable) for variable in fitted}
        given = tree.flatten((args, kwargs))
        # On JAX, Keras takes the state out of the variables for such a call and
        # assigns it back afterwards. Here assignments have no effect, so the
        # state would be lost.
        is_moved = any(id(v) in ids for v in [*self.variables, *given])
        # PyTorch's tensors know whether they depend on variables.
        is_moved |= any(getattr(v, "requires_grad", False) for v in given)
        if keras.backend.backend() == "jax" or is_moved:
            raise Prediction(stock.__name__)
        try:
            # The predictions of a frozen model for fixed inputs have no
            # derivatives.
            return stock(self, *args, **kwargs)
        except Exception as error:
            raise Prediction(stock.__name__) from error

    return method


def in_words(function: str, method: str, line: str) -> str:
    """The message of the error.

    Args:
        function: the name of the argument whose function called the method.
        method: the name of the method.
        line: the user's line.
    """
    return (
        f"Function `{function}` must not call `{method}`, which returns "
        f"{METHODS[method]}. Call the model itself, `model(x)`, or compute "
        "what does not depend on the variables to fit beforehand. "
        f"Received: {line}"
    )
