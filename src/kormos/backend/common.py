"""Functions that several backends share."""

import builtins
import contextlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any
from typing import TypeVar

import keras
import numpy as np

from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

_Result = TypeVar("_Result")

# Keras' message for any failure of its `cholesky` begins with this.
_CHOLESKY = "Cholesky decomposition failed"
# The text that Python prints for an exception begins with these words.
_TRACEBACK = "Traceback (most recent call last):"


def is_numerical(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether an exception, or one that caused it, is about numerics.

    Args:
        error: the exception.
        *kinds: the classes of the backend for such exceptions, besides those
            of NumPy and Python.
    """
    classes: tuple[type[BaseException], ...] = (
        ArithmeticError,
        np.linalg.LinAlgError,
        *kinds,
    )
    return any(
        issubclass(class_of(cause, *classes), classes)
        or str(cause).startswith(_CHOLESKY)
        for cause in causes(error)
    )


def quoted(error: BaseException) -> str | None:
    """The line that names the exception raised in Python code of a graph.

    TensorFlow (`tf.py_function`) and JAX (`jax.pure_callback`) raise
    their own exception, whose message contains Python's text of the first one.

    Args:
        error: the backend's exception.

    Returns:
        The line, such as `"TypeError: a mistake"`, or `None` if the message has
        no such line.
    """
    _, _, trace = str(error).rpartition(_TRACEBACK)
    if trace == str(error):
        return None
    # Lines about the places in the code are indented.
    lines = [line for line in trace.splitlines() if line[:1].strip()]
    return lines[0] if lines else None


def class_of(
    error: BaseException, *known: type[BaseException]
) -> type[BaseException]:
    """The class of an exception, or of the one that its message quotes.

    Args:
        error: the exception.
        *known: classes besides those of Python that may be quoted.

    Returns:
        The class. It is `Exception` if the message quotes an unknown class.
    """
    line = quoted(error)
    if line is None:
        return type(error)
    name = line.partition(":")[0].rpartition(".")[2]
    named = {kind.__name__: kind for kind in known}
    found = named.get(name, getattr(builtins, name, None))
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    return Exception


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception, then those that caused it."""
    while error is not None:
        yield error
        # The context exists even after `raise ... from None`, with which Keras
        # hides the cause.
        error = error.__cause__ or error.__context__


class SecondDerivativeError(ValueError):
    """An operation has no second derivatives."""


@contextlib.contextmanager
def refusing(*kinds: tuple[type[BaseException], str]) -> Iterator[None]:
    """A scope that replaces some errors by one about second derivatives.

    Args:
        *kinds: pairs of the class of an exception and a part of its message.
    """
    try:
        yield
    except Exception as error:
        if not any(isinstance(error, k) and m in str(error) for k, m in kinds):
            raise
        said = in_a_line(error, 200)
        raise SecondDerivativeError(
            "This method needs second derivatives, which an operation of the "
            "loss does not have on this backend. Use 'lbfgs' or another "
            "method of first derivatives, or another backend. "
            f"Received: {said}"
        ) from error


@contextlib.contextmanager
def parameters_met() -> Iterator[dict[int, Tensor]]:
    yield {}


@contextlib.contextmanager
def standing_in(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    yield


def unscaled() -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def own_copies(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def once(fn: Callable[..., _Result]) -> Callable[..., _Result]:
    return fn


def check_forward_mode(
    fn: Callable[..., Structure], parts: list[Tensor], tangents: list[Tensor]
) -> None:
    pass  # A call of `jvp` raises the error.


def to_numpy(value: Any) -> Array:
    is_variable = isinstance(value, keras.Variable)
    return keras.ops.convert_to_numpy(value.value if is_variable else value)


def copied(tensor: Tensor, memory: Tensor | None = None) -> Tensor:
    del memory
    return keras.ops.copy(tensor)


def equal_arrays(array: Array, other: Array) -> bool:
    """Whether two arrays hold the same numbers; NaN is the same as NaN."""
    if np.array_equal(array, other):
        return True  # To look for NaN takes ten times as long.
    return array.dtype.kind in "fcV" and np.array_equal(
        array, other, equal_nan=True
    )


def in_a_line(error: Exception, most: int = 300) -> str:
    """The message of an exception, in a line of limited length."""
    return " ".join(str(error).split())[:most]


def as_tensor(leaf: Any) -> Any:
    """Converts a NumPy array to a tensor of its dtype, and nothing else."""
    if isinstance(leaf, np.ndarray):
        return keras.ops.convert_to_tensor(leaf, dtype=leaf.dtype.name)
    return leaf


class Graphs:
    """The graphs that an eager backend records; this class records none."""

    def recorded(self, fn: Callable[..., _Result]) -> Callable[..., _Result]:
        return fn

    def clear(self) -> None:
        pass


def eagerly() -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def devices() -> int:
    return 1


def row_devices() -> int:
    return 1


def replicas(owner: Any) -> tuple[str, ...]:
    return ()


def on_device(name: str | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def spread_rows(
    array: Array,
    axis: int,
    put: Callable[[Array], Tensor],
    is_divisible: bool = False,
) -> Tensor:
    return put(array)


def sum_by_device(
    fn: Callable[[Structure, _Result], _Result],
    stacked: Structure,
    total: _Result,
) -> _Result:
    return fn(stacked, total)


def whole(structure: Structure) -> Structure:
    return structure


def add_outer(matrix: Tensor, vector: Tensor, factor: Scalar) -> Tensor:
    # In this order of operations it is exactly symmetric.
    rows = keras.ops.expand_dims(vector, 1)
    return matrix + rows * keras.ops.expand_dims(vector, 0) * factor


def spread_zeros(shape: tuple[int, ...], dtype: str) -> Tensor:
    return np.zeros(shape, dtype)


def keep_spread(tensor: Tensor) -> Tensor:
    return tensor


def gather(tensor: Tensor) -> Tensor:
    return tensor


def laid_out(array: Array, like: Tensor) -> Tensor:
    return array


def values_and_jacobian(
    differentiate: Callable[..., Callable[..., Any]],
    fn: Callable[..., Tensor],
) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    """Makes `(parts, row) -> (values, derivatives)` of `fn(parts, row)`.

    Args:
        differentiate: `jacfwd` or `jacrev` of JAX or PyTorch, which take a
            function that returns its values and an auxiliary result, and
            `has_aux=True`.
        fn: the function.
    """

    def both(
        parts: list[Tensor], row: Structure
    ) -> tuple[Tensor, list[Tensor]]:
        def twice(p: list[Tensor]) -> tuple[Tensor, Tensor]:
            values = fn(p, row)
            return values, values

        derivatives, values = differentiate(twice, has_aux=True)(parts)
        return values, derivatives

    return both


def local(tensor: Tensor) -> Tensor:
    return tensor


def placed_like(array: Array, tensor: Tensor) -> Any:
    return array


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    yield
