"""True float64, which depends on an entry of a private dictionary of Keras.

On JAX and PyTorch (and on TensorFlow before Keras 3.12), Keras promotes
float64 to float32, whatever `floatx` says. A float64 model is then computed
in float32 without a warning.
"""

import contextlib
import threading
from collections.abc import Hashable
from collections.abc import Iterator
from typing import NamedTuple

import keras

try:
    from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE
except ImportError:
    # A newer Keras. The self-test will raise an error for users of float64.
    BIT64_TO_BIT32_DTYPE = {}


class _Settings(NamedTuple):
    """The global settings of a process; the dtype policy is per thread."""

    entry: str
    floatx: str


# Scopes may be open in several threads and close in any order.
_lock = threading.Lock()
_open: list["_Scope"] = []
# The settings outside of all scopes, noted when the first one was opened.
_outside = _Settings("float32", "float32")


class _Scope:
    """An open scope of `precision`."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


def is_true_float64() -> bool:
    """Whether Keras computes float64 models in float64 at this moment."""
    return keras.backend.result_type("float64", float) == "float64"


def enable_float64() -> None:
    """Makes true float64 the default precision of Keras, on every backend.

    Call it before a model is built. It sets Keras' type promotion, JAX's x64
    mode, `floatx` and the dtype policy together, and tests the result.

    Raises:
        RuntimeError: If the installed Keras still rounds float64 to float32.

    Example:

    ```python
    kormos.enable_float64()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    print(model.dtype)  # float64
    ```
    """
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    _apply(_FLOAT64)
    keras.config.set_dtype_policy("float64")
    _self_test()


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Context manager in which Keras computes in `dtype`.

    Build and use models inside the scope. At its end, the settings of Keras are
    restored. `floatx` and Keras' type promotion are global to the process, so
    other threads see the change too.

    Args:
        dtype: `"float64"` or `"float32"`.

    Raises:
        ValueError: If `dtype` is neither of the two.
        RuntimeError: If the installed Keras still rounds float64 to float32.

    Example:

    ```python
    with kormos.precision("float64"):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(optimizer="lbfgs", loss="mse")
        model.fit(x, y, epochs=50)
    ```
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(
            "Argument `dtype` must be 'float32' or 'float64'. "
            f"Received: dtype={dtype!r}"
        )
    scope = _Scope(dtype)
    policy = keras.config.dtype_policy()
    with _jax_x64(dtype == "float64"):
        _enter(scope)
        try:
            keras.config.set_dtype_policy(dtype)
            if dtype == "float64":
                _self_test()
            yield
        finally:
            keras.config.set_dtype_policy(policy)
            _leave(scope)


_turn = threading.Condition()
# The number of open scopes of `turn`, by their argument and thread.
_holders: dict[tuple[Hashable, int | None], int] = {}


@contextlib.contextmanager
def turn(dtype: Hashable) -> Iterator[None]:
    """A scope in which no other thread evaluates in another precision.

    The settings that one thread needs for float64 must not affect what other
    threads trace at that time. So only one thread at a time may change
    settings. Any number of threads may share the settings from outside.

    Args:
        dtype: `None` for the settings from outside. With another value, the
            thread waits until it is alone.
    """
    thread = threading.get_ident()
    mine = dtype, thread if dtype else None
    with _turn:
        is_alone = any(holder[1] == thread for holder in _holders)
    if is_alone:
        # A thread does not wait for its own scopes.
        yield
        return
    with _turn:
        _turn.wait_for(lambda: not _holders or mine in _holders)
        _holders[mine] = _holders.get(mine, 0) + 1
    try:
        yield
    finally:
        with _turn:
            _holders[mine] -= 1
            if not _holders[mine]:
                del _holders[mine]
                _turn.notify_all()


_FLOAT64 = _Settings("float64", "float64")


def _present() -> _Settings:
    return _Settings(
        BIT64_TO_BIT32_DTYPE.get("float64", "float32"),
        keras.config.floatx(),
    )


def _apply(settings: _Settings) -> None:
    BIT64_TO_BIT32_DTYPE["float64"] = settings.entry
    keras.config.set_floatx(settings.floatx)


def _enter(scope: _Scope) -> None:
    global _outside
    with _lock:
        if not _open:
            _outside = _present()
        _open.append(scope)
        _apply(_innermost())


def _leave(scope: _Scope) -> None:
    with _lock:
        _open.remove(scope)
        _apply(_innermost())


def _innermost() -> _Settings:
    """The settings of the scope that opened last."""
    if not _open:
        return _outside
    dtype = _open[-1].dtype
    if dtype == "float64":
        return _FLOAT64
    return _Settings(_outside.entry, dtype)


def _jax_x64(enabled: bool) -> contextlib.AbstractContextManager[None]:
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(enabled)


def _self_test() -> None:
    if not is_true_float64():
        raise RuntimeError(
            "Keras still computes float64 in float32: its type promotion has "
            "changed since this release of kormos. Install a Keras release "
            f"that kormos supports. Received: keras {keras.__version__}"
        )
