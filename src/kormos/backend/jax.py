"""Differentiation and compilation with JAX."""

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any
from typing import TypeVar

import jax
import jax.extend.core
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from kormos.backend import common
from kormos.backend.common import values_and_jacobian
from kormos.backend.jax_cache import keep_compiled
from kormos.backend.jax_compilation import EFFORTS_FOR_LOOP
from kormos.backend.jax_compilation import EFFORTS_FOR_ONCE
from kormos.backend.jax_compilation import Compiled
from kormos.backend.jax_compilation import called_by
from kormos.backend.jax_convolutions import canonical
from kormos.backend.jax_devices import placing
from kormos.backend.jax_devices import whole
from kormos.backend.jax_devices import without_padding
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

keep_compiled()

_Result = TypeVar("_Result")

# Primitives that call functions. JAX keeps the traces of these functions. The
# name of the last one depends on the release of JAX.
_CONTROL = ("scan", "while", "cond", "checkpoint", "remat2")
_traces = itertools.count()


def compile(
    fn: Callable[..., _Result], xla: bool = True
) -> Callable[..., _Result]:
    del xla  # JAX has no other compiler.
    return Compiled(_of_whole(fn))


def once(fn: Callable[..., _Result]) -> Callable[..., _Result]:
    # Without `jit`, each operation would be compiled separately.
    return Compiled(_of_whole(fn), EFFORTS_FOR_ONCE)


def compile_loop(fn: Callable[..., _Result]) -> Callable[..., _Result]:
    compiled = Compiled(_of_whole(fn), EFFORTS_FOR_LOOP, donate=(0,))
    return placing(compiled)


def _of_whole(fn: Callable[..., _Result]) -> Callable[..., _Result]:
    """The function, applied to arrays without their padding."""

    @functools.wraps(fn)
    def of_whole(*args: Structure) -> _Result:
        return fn(*without_padding(args))

    return of_whole


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def chunk_numbers() -> int:
    # This many numbers in float32 fit into the cache of a CPU, from which they
    # are read twice as fast as from memory.
    return 2**17 if on_cpu() else 2**24


def narrow_from() -> float:
    # Measured on a CPU. The conversion only takes time for short vectors.
    return 2**8


# A part of the message of the error of JAX that `attempt` works around.
_MIXED = "RuntimeProgramInputMismatch"


def attempt(fn: Callable[..., _Result], *args: Structure) -> _Result:
    if not isinstance(fn, Compiled):
        args = whole(args)
    try:
        return fn(*args)
    except Exception as error:
        if _MIXED in str(error):
            # A bug of JAX: if a function was traced in float64 with a NumPy
            # array, JAX calls it with this array rounded to float32.
            jax.clear_caches()
            return fn(*args)
        if not is_numerical(error):
            raise
    return dry_run(fn, *args)


def dry_run(fn: Callable[..., _Result], *args: Structure) -> _Result:
    # An eager run would compile each operation separately.
    shapes = jax.eval_shape(_of_whole(fn), *args)
    return jax.tree.map(
        lambda s: jax.device_put(np.zeros(s.shape, s.dtype)), shapes
    )


def is_numerical(error: BaseException) -> bool:
    return common.is_numerical(error)


def keeps_traces(fn: Callable[..., Structure], *args: Structure) -> bool:
    try:
        # Without `float64`, NumPy arrays in the trace would stay in float32.
        with float64(), own_trace():
            return _has_control(jax.make_jaxpr(fn)(*args))
    except Exception:
        return False  # The compiled function will raise the same error.


def _has_control(closed: jax.extend.core.ClosedJaxpr) -> bool:
    """Whether a program calls functions that may have read variables."""
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name in _CONTROL:
            return True
        for inner in called_by(equation):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                if inner.consts or _has_control(inner):
                    return True
    return False


def own_trace() -> contextlib.AbstractContextManager[Any]:
    # JAX finds traces by the function and the context, and the metadata belong
    # to the context.
    return set_xla_metadata(kormos_trace=str(next(_traces)))


def scalar(tensor: Tensor) -> Scalar:
    return tensor


def view(tensor: Tensor) -> Array:
    # `keras.ops.convert_to_numpy` would copy the tensor.
    return np.asarray(tensor)


def values(tensor: Tensor) -> Array | None:
    is_traced = isinstance(tensor, jax.core.Tracer)
    return None if is_traced else np.asarray(tensor)


def held(tensor: Tensor) -> Tensor | None:
    # No code can change an array: a variable is given another one.
    return tensor


def is_held(tensor: Tensor, held: Tensor | None) -> bool:
    return tensor is held


def equal(tensor: Tensor, other: Tensor) -> bool:
    if any(
        isinstance(a, jax.Array) and a.is_deleted() for a in (tensor, other)
    ):
        return False  # Keras' own steps delete arrays: nothing is known.
    return common.equal_arrays(np.asarray(tensor), np.asarray(other))


def dot(a: Tensor, b: Tensor) -> Scalar:
    return jax.numpy.einsum("i,i->", a, b)


def arctan(tensor: Tensor) -> Tensor:
    # `keras.ops.arctan` rounds to float32.
    return jax.numpy.arctan(tensor)


def set_row(matrix: Tensor, index: Scalar, row: Tensor) -> Tensor:
    return jax.lax.dynamic_update_index_in_dim(matrix, row, index, 0)


def set_column(matrix: Tensor, index: Scalar, column: Tensor) -> Tensor:
    return jax.lax.dynamic_update_index_in_dim(matrix, column, index, 1)


def float64() -> contextlib.AbstractContextManager[Any]:
    # Outside of this mode JAX rounds every float64 tensor to float32. Float32
    # tensors stay as they are. JAX's caches distinguish the two modes.
    return jax.enable_x64(True)


def repeatable() -> contextlib.AbstractContextManager[Any]:
    # All draws of Keras depend on the state of a seed generator.
    return contextlib.nullcontext()


def has_own_gradients(compiled: Callable[..., Structure]) -> bool:
    return False  # No operation is known whose second derivatives are wrong.


def value_and_grad(
    fn: Callable[..., Any], has_others: bool = False
) -> Callable[..., tuple[Any, list[Tensor]]]:
    return canonical(jax.value_and_grad(fn, has_aux=has_others))


def hvp(fn: Callable[..., Scalar]) -> Callable[..., list[Tensor]]:
    def product(
        parts: list[Tensor], tangents: list[Tensor], *args: Structure
    ) -> list[Tensor]:
        gradient = jax.grad(lambda p: fn(p, *args))
        return jax.jvp(gradient, (parts,), (tangents,))[1]

    return canonical(product)


def jacobian(fn: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    return canonical(jax.jacrev(fn))


def jvp(
    fn: Callable[..., Structure],
) -> Callable[..., tuple[Structure, Structure]]:
    def product(
        parts: list[Tensor], tangents: list[Tensor], *args: Structure
    ) -> tuple[Structure, Structure]:
        return jax.jvp(lambda p: fn(p, *args), (parts,), (tangents,))

    return product


def check_forward_mode(
    fn: Callable[..., Structure], parts: list[Tensor], tangents: list[Tensor]
) -> None:
    # Otherwise, a derivative of `jvp` would raise the error only when it is
    # compiled. Here it is only traced. The tangents vary too: otherwise a
    # user's own gradient that is a constant would pass.
    def directional(
        parts: list[Tensor], tangents: list[Tensor]
    ) -> tuple[Structure, Structure]:
        return jax.jvp(fn, (parts,), (tangents,))

    jax.eval_shape(
        lambda p, t: jax.jvp(directional, (p, t), (t, t)), parts, tangents
    )


def vjp(fn: Callable[..., Structure]) -> Callable[..., list[Tensor]]:
    def product(
        parts: list[Tensor], cotangents: Structure, *args: Structure
    ) -> list[Tensor]:
        return jax.vjp(lambda p: fn(p, *args), parts)[1](cotangents)[0]

    return canonical(product)


def row_jacobian(
    fn: Callable[..., Tensor], forward: bool
) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    differentiate = jax.jacfwd if forward else jax.jacrev
    both = values_and_jacobian(differentiate, fn)
    return canonical(jax.vmap(both, in_axes=(None, 0)))


def map_rows(
    fn: Callable[[Structure], Structure], rows: Structure
) -> Structure:
    return jax.vmap(fn)(rows)
