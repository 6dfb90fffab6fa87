"""Differentiation and compilation with JAX."""

import contextlib
import itertools

import jax
import jax.extend.core
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from kormos.backend.common import is_numerical as is_numerical
from kormos.backend.common import values_and_jacobian
from kormos.backend.jax_convolutions import canonical

# Operations that take functions, whose traces JAX keeps.
_CONTROL = ("scan", "while", "cond", "checkpoint")
_traces = itertools.count()


def compile(fn, xla=True):
    del xla  # JAX has no other compiler.
    return jax.jit(fn)


def once(fn):
    # Each operation of an eager run is compiled for itself.
    return jax.jit(fn)


def compile_loop(fn):
    return jax.jit(fn, donate_argnums=0)


def on_cpu():
    return jax.default_backend() == "cpu"


def chunk_numbers():
    # Of a layer's outputs: in a CPU's cache they are read twice as fast.
    return 2**17 if on_cpu() else 2**24


_MIXED = "RuntimeProgramInputMismatch"


def attempt(fn, *args):
    try:
        return fn(*args)
    except Exception as error:
        if _MIXED in str(error):
            # What was traced in float64 with an array of NumPy's is called
            # with the array rounded to float32: the mistake is JAX's own.
            jax.clear_caches()
            return fn(*args)
        if not is_numerical(error):
            raise
    return dry_run(fn, *args)


def dry_run(fn, *args):
    # Each operation of an eager run is compiled for itself.
    shapes = jax.eval_shape(fn, *args)
    return jax.tree.map(
        lambda s: jax.device_put(np.zeros(s.shape, s.dtype)), shapes
    )


def keeps_traces(fn, *args):
    try:
        # A NumPy array that is traced without it is in float32 from then on.
        with wide(), own_trace():
            return _has_control(jax.make_jaxpr(fn)(*args))
    except Exception:
        return False  # What compiles it will raise the same.


def _has_control(closed):
    """Whether functions that may read variables are called within."""
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name in _CONTROL:
            return True
        for inner in jax.tree.leaves(list(equation.params.values())):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                if inner.consts or _has_control(inner):
                    return True
    return False


def own_trace():
    # JAX looks up traces by the function and by what these contexts hold.
    return set_xla_metadata(kormos_trace=str(next(_traces)))


def scalar(tensor):
    return tensor


def view(tensor):
    return np.asarray(tensor)  # Keras' own copies.


def values(tensor):
    is_traced = isinstance(tensor, jax.core.Tracer)
    return None if is_traced else np.asarray(tensor)


def dot(a, b):
    return jax.numpy.einsum("i,i->", a, b)


def arctan(tensor):
    # Keras' own rounds to float32.
    return jax.numpy.arctan(tensor)


def set_row(matrix, index, row):
    return jax.lax.dynamic_update_index_in_dim(matrix, row, index, 0)


def wide():
    # Without it JAX rounds every float64 tensor to float32. Tensors that are
    # float32 stay so, and the mode is part of the key of JAX's own caches.
    return jax.enable_x64(True)


def repeatable():
    # Keras draws by the state of its seed generators alone.
    return contextlib.nullcontext()


def has_own_gradients(compiled):
    return False  # No operation is known whose second derivatives are wrong.


def value_and_grad(fn):
    return canonical(jax.value_and_grad(fn))


def hvp(fn):
    def product(parts, tangents, *args):
        gradient = jax.grad(lambda p: fn(p, *args))
        return jax.jvp(gradient, (parts,), (tangents,))[1]

    return canonical(product)


def jacobian(fn):
    return canonical(jax.jacrev(fn))


def jvp(fn):
    def product(parts, tangents, *args):
        return jax.jvp(lambda p: fn(p, *args), (parts,), (tangents,))

    return product


def check_forward_mode(fn, parts, tangents):
    # A derivative of it would raise this only where it is compiled. Along the
    # tangents too, or a gradient of a user's own that is a constant passes.
    def along(parts, tangents):
        return jax.jvp(fn, (parts,), (tangents,))

    jax.eval_shape(lambda p, t: jax.jvp(along, (p, t), (t, t)), parts, tangents)


def vjp(fn):
    def product(parts, cotangents, *args):
        return jax.vjp(lambda p: fn(p, *args), parts)[1](cotangents)[0]

    return canonical(product)


def row_jacobian(fn, forward):
    differentiate = jax.jacfwd if forward else jax.jacrev
    both = values_and_jacobian(differentiate, fn)
    return canonical(jax.vmap(both, in_axes=(None, 0)))


def map_rows(fn, rows):
    return jax.vmap(fn)(rows)
