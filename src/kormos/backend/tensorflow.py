"""Differentiation and compilation with TensorFlow."""

import contextlib

import keras
import tensorflow as tf

from kormos.backend import common
from kormos.backend.tensorflow_loops import backward_where_needed
from kormos.backend.tensorflow_loops import is_refused_by_xla

_NOT_COMPILED = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
)
# Of an operation without a derivative: where it is traced, and where it runs.
_ONCE = (
    (LookupError, "gradient"),
    (tf.errors.NotFoundError, "SymbolicGradient"),
)
ZERO = tf.UnconnectedGradients.ZERO

# Operations whose gradient is stopped, or computed by Python.
_OWN_GRADIENTS = ("StopGradient", "PyFunc", "EagerPyFunc")


def compile(fn, xla=False):
    return _quickly_called(_traced(fn, xla))


def _traced(fn, xla):
    return tf.function(fn, jit_compile=xla, autograph=False)


def _quickly_called(function):
    """The same; with arguments like those before, it takes half to call."""
    latest = None

    def call(*args):
        nonlocal latest
        if not tf.executing_eagerly():
            return function(*args)
        if latest is not None:
            try:
                return latest(*args)
            except TypeError:
                pass  # Other shapes.
        with common.refusing(*_ONCE):
            latest = function.get_concrete_function(*args)
            return latest(*args)

    call.graph = lambda: None if latest is None else latest.graph
    return call


def has_own_gradients(compiled):
    """Whether a gradient within is not the operation's own, or may not be.

    That is so where one is stopped, as by `tf.nn.moments`, or is a user's own.

    Args:
        compiled: what `compile` has returned, once called, or any function.
    """
    graph = getattr(compiled, "graph", lambda: None)()
    return graph is None or any(
        node.op in _OWN_GRADIENTS or "_gradient_op_type" in node.attr
        for node in _nodes(graph)
    )


def _nodes(graph):
    """The operations of a graph and of the functions that it calls."""
    graph = graph.as_graph_def()
    for nodes in [graph.node, *(f.node_def for f in graph.library.function)]:
        yield from nodes


def compile_loop(fn):
    fast = _traced(fn, xla=True)
    chosen = None

    def call(*args):
        nonlocal chosen
        if chosen is None:
            is_slow = _is_slow_in_xla(fast, args)
            is_unfit = is_slow or is_refused_by_xla(fast, args)
            chosen = compile(fn) if is_unfit else _quickly_called(fast)
            try:
                return chosen(*args)
            except _NOT_COMPILED:
                # A layer has an operation that XLA lacks.
                chosen = compile(fn)
        return chosen(*args)

    return call


def _is_slow_in_xla(function, args):
    """Whether there are gradients of convolutions, on a CPU.

    Within a loop they take XLA some ten times as long as they do elsewhere.
    """
    if not on_cpu():
        return False
    graph = function.get_concrete_function(*args).graph
    return any(
        "Conv" in node.op and "Backprop" in node.op for node in _nodes(graph)
    )


def on_cpu():
    return not tf.config.list_logical_devices("GPU")


def chunk_numbers():
    # Of a layer's outputs: in a CPU's cache they are read twice as fast.
    return 2**17 if on_cpu() else 2**24


def attempt(fn, *args):
    try:
        return fn(*args)
    except Exception as error:
        if not is_numerical(error):
            raise
        # Tracing computes nothing, and finds other errors.
        traced = tf.function(lambda: fn(*args), autograph=False)
        shapes = traced.get_concrete_function().structured_outputs
    return tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), shapes)


dry_run = attempt


def is_numerical(error):
    # What XLA cannot compile is invalid too.
    return "trying to compile" not in str(error) and common.is_numerical(
        error, tf.errors.InvalidArgumentError
    )


def keeps_traces(fn, *args):
    return False


def own_trace():
    return contextlib.nullcontext()


def scalar(tensor):
    return tensor


def values(tensor):
    is_traced = tf.is_symbolic_tensor(tensor)
    return None if is_traced else keras.ops.convert_to_numpy(tensor)


def dot(a, b):
    return tf.tensordot(a, b, 1)


arctan = tf.atan


def set_row(matrix, index, row):
    start = (index, *[tf.zeros_like(index)] * (matrix.ndim - 1))
    return keras.ops.slice_update(matrix, start, row[tf.newaxis])


def wide():
    return contextlib.nullcontext()


def repeatable():
    # Keras draws by the state of its seed generators alone.
    return contextlib.nullcontext()


def value_and_grad(fn):
    def wrapped(parts, *args):
        return _differentiate(lambda p: fn(p, *args), parts)

    return wrapped


def hvp(fn):
    gradient = value_and_grad(fn)

    def product(parts, tangents, *args):
        def slope(parts):
            _, gradients = gradient(parts, *args)
            pairs = zip(gradients, tangents, strict=True)
            return tf.add_n(
                [tf.reduce_sum(g * tf.cast(t, g.dtype)) for g, t in pairs]
            )

        return _differentiate(slope, parts)[1]

    return product


def _differentiate(fn, parts, cotangents=None):
    """`fn(parts)` and its gradients, or cotangents times its derivatives."""
    if tf.executing_eagerly():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parts)
            values = fn(parts)
        gradients = tape.gradient(
            values, parts, cotangents, unconnected_gradients=ZERO
        )
    else:
        # A tape in a graph gets the gradient of a `jvp` of a `jvp` wrong.
        parts = [tf.identity(part) for part in parts]
        values = fn(parts)
        gradients = tf.gradients(
            values, parts, cotangents, unconnected_gradients=ZERO
        )
    # Gathers (embeddings) give `IndexedSlices`.
    return values, [tf.convert_to_tensor(g) for g in gradients]


def jvp(fn):
    @backward_where_needed(fn)
    def product(parts, tangents, *args):
        with tf.autodiff.ForwardAccumulator(parts, tangents) as forward:
            values = fn(parts, *args)
        derivatives = forward.jvp(values, unconnected_gradients=ZERO)
        # After some tens of shapes TensorFlow forgets them here.
        tf.nest.map_structure(
            lambda d, v: d.set_shape(v.shape), derivatives, values
        )
        return values, derivatives

    return product


def vjp(fn):
    def product(parts, cotangents, *args):
        return _differentiate(lambda p: fn(p, *args), parts, cotangents)[1]

    return product
