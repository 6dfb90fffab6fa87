"""True float64, by a dictionary in Keras' private modules.

Keras promotes float64 to float32 on JAX and PyTorch (and on TensorFlow before
Keras 3.12), whatever `floatx` says, so that a float64 model is computed in
float32 without a word. The entry of one dictionary decides it.
"""

import contextlib
import threading
from typing import NamedTuple

import keras

try:
    from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE
except ImportError:
    # Keras has changed: the self-test says so to whoever asks for float64.
    BIT64_TO_BIT32_DTYPE = {}

# Scopes may be open in several threads and close in any order.
_lock = threading.Lock()
_open: list = []
_outside = None


def is_true_float64():
    """Whether Keras computes float64 models in float64 at this moment."""
    return keras.backend.result_type("float64", float) == "float64"


def enable_float64():
    """Makes float64 the true default precision of Keras, on every backend.

    Call it before a model is built: it sets Keras' type promotion, JAX's x64
    mode, `floatx` and the dtype policy together, and tests the outcome.

    Raises:
        RuntimeError: if the installed Keras still rounds float64 to float32.

    Example:

    ```python
    import kormos

    kormos.enable_float64()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ```
    """
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    _apply(_FLOAT64)
    keras.config.set_dtype_policy("float64")
    _self_test()


@contextlib.contextmanager
def precision(dtype):
    """A scope in which Keras computes in `dtype`, and that undoes itself.

    Models are to be built and used inside the scope. `floatx` and Keras' type
    promotion are global to the process: other threads see them too.

    Args:
        dtype: `"float64"` or `"float32"`.

    Raises:
        ValueError: if `dtype` is another one.
        RuntimeError: if the installed Keras still rounds float64 to float32.

    Example:

    ```python
    with kormos.precision("float64"):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(optimizer="lbfgs", loss="mse")
        model.fit(x, y, epochs=100)
    ```
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(
            "Argument `dtype` must be 'float32' or 'float64'. "
            f"Received: dtype={dtype!r}"
        )
    scope = [dtype]
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
_holders: dict = {}


@contextlib.contextmanager
def turn(dtype):
    """A scope in which no other thread evaluates in another precision.

    What one thread sets for its float64 is not to reach into what another
    traces meanwhile: float64 is for one thread at a time, the precision that
    is set outside (`None`) for any number of them.
    """
    thread = threading.get_ident()
    mine = dtype, thread if dtype else None
    with _turn:
        is_alone = any(holder[1] == thread for holder in _holders)
    if is_alone:
        # Within a turn of its own a thread waits for nobody.
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


class _Settings(NamedTuple):
    """What is global to the process; the dtype policy is each thread's."""

    entry: str
    floatx: str


_FLOAT64 = _Settings("float64", "float64")


def _present():
    return _Settings(
        BIT64_TO_BIT32_DTYPE.get("float64", "float32"),
        keras.config.floatx(),
    )


def _apply(settings):
    BIT64_TO_BIT32_DTYPE["float64"] = settings.entry
    keras.config.set_floatx(settings.floatx)


def _enter(scope):
    global _outside
    with _lock:
        if not _open:
            _outside = _present()
        _open.append(scope)
        _apply(_innermost())


def _leave(scope):
    with _lock:
        # By identity: scopes of the same dtype are equal.
        _open[:] = [other for other in _open if other is not scope]
        _apply(_innermost())


def _innermost():
    """The settings of the scope that opened last."""
    if not _open:
        return _outside
    (dtype,) = _open[-1]
    if dtype == "float64":
        return _FLOAT64
    return _Settings(_outside.entry, dtype)


def _jax_x64(enabled):
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(enabled)


def _self_test():
    if not is_true_float64():
        raise RuntimeError(
            "Keras still computes float64 in float32 here: its type promotion "
            "has changed since this release of kormos. Install a Keras release "
            f"that kormos supports. Received: keras {keras.__version__}"
        )
