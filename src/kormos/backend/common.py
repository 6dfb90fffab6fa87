"""What backends share."""

import contextlib

import keras
import numpy as np

# As Keras begins what it raises for any failure of its `cholesky`.
_CHOLESKY = "Cholesky decomposition failed"


def is_numerical(error, *kinds):
    """Whether an exception, or what it was raised for, is of these kinds.

    Args:
        error: the exception.
        *kinds: those of the backend, besides NumPy's and Python's own.
    """
    kinds = (ArithmeticError, np.linalg.LinAlgError, *kinds)
    return any(
        isinstance(cause, kinds) or str(cause).startswith(_CHOLESKY)
        for cause in causes(error)
    )


def causes(error):
    """Yields an exception, and those that it was raised for."""
    while error is not None:
        yield error
        # Also what Keras hides, with `raise ... from None`.
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def refusing(*kinds):
    """A scope in which some errors say that there is no second derivative.

    Args:
        *kinds: pairs of an exception's class and a part of its message.
    """
    try:
        yield
    except Exception as error:
        if not any(isinstance(error, k) and m in str(error) for k, m in kinds):
            raise
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            "This method needs second derivatives, which an operation of the "
            "loss does not have on this backend. Use 'lbfgs' or another "
            "method of first derivatives, or another backend. "
            f"Received: {said}"
        ) from error


@contextlib.contextmanager
def parameters_met():
    yield {}


@contextlib.contextmanager
def standing_in(pairs):
    yield


def once(fn):
    return fn


def check_forward_mode(fn, parts, tangents):
    pass  # `jvp` itself raises.


def view(tensor):
    return keras.ops.convert_to_numpy(tensor)


def as_tensor(leaf):
    """A NumPy array as a tensor of its dtype; anything else as it is."""
    if isinstance(leaf, np.ndarray):
        return keras.ops.convert_to_tensor(leaf, dtype=leaf.dtype.name)
    return leaf


def values_and_jacobian(differentiate, fn):
    """`(parts, row) -> (values, derivatives)` of `fn(parts, row)`.

    Args:
        differentiate: takes a function of one argument that returns the values
            and an auxiliary result, and `has_aux`, as JAX's and torch's do.
        fn: the function.
    """

    def both(parts, row):
        def twice(p):
            values = fn(p, row)
            return values, values

        derivatives, values = differentiate(twice, has_aux=True)(parts)
        return values, derivatives

    return both
