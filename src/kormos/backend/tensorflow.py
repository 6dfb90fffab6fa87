"""Differentiation and compilation with TensorFlow."""

import contextlib
import math
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

from kormos.backend import common
from kormos.backend.tensorflow_loops import backward_where_needed
from kormos.backend.tensorflow_loops import is_refused_by_xla
from kormos.backend.tensorflow_processes import local
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

_Result = TypeVar("_Result")

_NOT_COMPILED = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
)
# Parts of the messages of errors of operations without a second derivative,
# when they are traced and when they run.
_NO_SECOND = (
    (LookupError, "gradient"),
    (tf.errors.NotFoundError, "SymbolicGradient"),
    (NotImplementedError, "recompute_grad"),
    # Of `tf.recompute_grad` with an object that is not a function.
    (AttributeError, "'__name__'"),
)
ZERO = tf.UnconnectedGradients.ZERO

# Operations whose gradient is stopped or computed by Python code.
_OWN_GRADIENTS = ("StopGradient", "PyFunc", "EagerPyFunc")


def compile(
    fn: Callable[..., _Result], xla: bool = False
) -> Callable[..., _Result]:
    return _quickly_called(_traced(fn, xla))


def _traced(fn: Callable[..., Any], xla: bool) -> Any:
    return tf.function(fn, jit_compile=xla, autograph=False)


def _quickly_called(function: Any) -> Any:
    """The same function, with half the overhead of a call.

    It keeps the concrete function of the latest call, and uses another one
    only for arguments with other shapes.
    """
    latest: Any = None

    def call(*args: Structure) -> Structure:
        nonlocal latest
        if not tf.executing_eagerly():
            return function(*args)
        if latest is not None:
            try:
                return latest(*args)
            except TypeError:
                pass  # The arguments have other shapes.
        with common.refusing(*_NO_SECOND):
            latest = function.get_concrete_function(*args)
            return latest(*args)

    compiled: Any = call
    compiled.graph = lambda: None if latest is None else latest.graph
    return compiled


def has_own_gradients(compiled: Callable[..., Structure]) -> bool:
    """Whether an operation may have another gradient than TensorFlow's own.

    This is so if a gradient is stopped, as in `tf.nn.moments`, or if a user
    has defined it.

    Args:
        compiled: a function that `compile` has returned and that was called.
            For any other function the answer is `True`.
    """
    graph = getattr(compiled, "graph", lambda: None)()
    return graph is None or any(
        node.op in _OWN_GRADIENTS or "_gradient_op_type" in node.attr
        for node in _nodes(graph)
    )


def _nodes(graph: tf.Graph) -> Iterator[Any]:
    """The operations of a graph and of the functions that it calls."""
    definition = graph.as_graph_def()
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def compile_loop(fn: Callable[..., _Result]) -> Callable[..., _Result]:
    fast = _traced(fn, xla=True)
    chosen: Any = None

    def call(*args: Structure) -> _Result:
        nonlocal chosen
        if chosen is None:
            with common.refusing(*_NO_SECOND):
                is_unfit = (
                    _is_slow_in_xla(fast, args)
                    or is_refused_by_xla(fast, args)
                    or _is_on_several_devices(fast, args)
                )
            chosen = compile(fn) if is_unfit else _quickly_called(fast)
            try:
                return chosen(*args)
            except _NOT_COMPILED:
                # A layer has an operation that XLA lacks.
                chosen = compile(fn)
        return chosen(*args)

    return call


def _is_slow_in_xla(function: Any, args: tuple[Structure, ...]) -> bool:
    """Whether there are gradients of convolutions, on a CPU.

    XLA takes about ten times as long for them within a loop as elsewhere.
    """
    if not on_cpu():
        return False
    graph = function.get_concrete_function(*args).graph
    return any(
        "Conv" in node.op and "Backprop" in node.op for node in _nodes(graph)
    )


def _is_on_several_devices(function: Any, args: tuple[Structure, ...]) -> bool:
    """Whether a function uses several devices, which XLA cannot compile."""
    graph = function.get_concrete_function(*args).graph
    return len({node.device for node in _nodes(graph)} - {""}) > 1


def on_cpu() -> bool:
    return not tf.config.list_logical_devices("GPU")


def chunk_numbers() -> int:
    # This many numbers in float32 fit into the cache of a CPU, from which they
    # are read twice as fast as from memory.
    return 2**17 if on_cpu() else 2**24


def narrow_from() -> float:
    # Measured on a CPU: its products in float32 take longer.
    return math.inf


def attempt(fn: Callable[..., _Result], *args: Structure) -> _Result:
    try:
        return fn(*args)
    except Exception as error:
        if not is_numerical(error):
            raise
        # A trace computes nothing. It still raises errors of other kinds.
        traced = tf.function(lambda: fn(*args), autograph=False)
        shapes = traced.get_concrete_function().structured_outputs
    return tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), shapes)


dry_run = attempt


def is_numerical(error: BaseException) -> bool:
    # XLA also raises `InvalidArgumentError` for a program that it cannot
    # compile.
    return "trying to compile" not in str(error) and common.is_numerical(
        error, tf.errors.InvalidArgumentError
    )


def keeps_traces(fn: Callable[..., Structure], *args: Structure) -> bool:
    return False


def own_trace() -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def scalar(tensor: Tensor) -> Scalar:
    return tensor


def to_numpy(value: Any) -> Array:
    if isinstance(value, keras.Variable):
        value = local(value.value)
    # `keras.ops.convert_to_numpy` makes NumPy warn of a variable's `__array__`.
    is_variable = isinstance(value, tf.Variable)
    return common.to_numpy(value.read_value() if is_variable else value)


def view(tensor: Tensor) -> Array:
    return to_numpy(tensor)


def values(tensor: Tensor) -> Array | None:
    return None if tf.is_symbolic_tensor(tensor) else view(tensor)


def held(tensor: Tensor) -> Tensor | None:
    # It has the memory of the variable. As long as there is this tensor, what
    # assigns to the variable takes other memory.
    return tf.convert_to_tensor(tensor)


def is_held(tensor: Tensor, held: Tensor | None) -> bool:
    if held is None:
        return False
    now, before = _shared(tensor), _shared(held)
    if now is None or before is None:
        return False
    return now.ctypes.data == before.ctypes.data


def equal(tensor: Tensor, other: Tensor) -> bool:
    now, before = map(_shared, (tensor, other))
    if now is None or before is None:
        same = tf.reduce_all(tf.equal(tensor, other))
        if same:
            return True
        now, before = map(to_numpy, (tensor, other))
    return common.equal_arrays(now, before)


def _shared(tensor: Tensor) -> Array | None:
    """An array in a tensor's own memory, or `None` if NumPy cannot read it."""
    tensor = tf.convert_to_tensor(tensor)
    if "CPU" not in tensor.device:
        return None
    try:
        return np.asarray(memoryview(tensor))
    except ValueError:
        return None  # NumPy has no such dtype.


def dot(a: Tensor, b: Tensor) -> Scalar:
    return tf.tensordot(a, b, 1)


def arctan(tensor: Tensor) -> Tensor:
    return tf.atan(tensor)


def set_row(matrix: Tensor, index: Scalar, row: Tensor) -> Tensor:
    start = (index, *[tf.zeros_like(index)] * (matrix.ndim - 1))
    return keras.ops.slice_update(matrix, start, row[tf.newaxis])


def set_column(matrix: Tensor, index: Scalar, column: Tensor) -> Tensor:
    start = (tf.zeros_like(index), index)
    return keras.ops.slice_update(matrix, start, column[:, tf.newaxis])


def float64() -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def repeatable() -> contextlib.AbstractContextManager[Any]:
    # All draws of Keras depend on the state of a seed generator.
    return contextlib.nullcontext()


def value_and_grad(
    fn: Callable[..., Any], has_others: bool = False
) -> Callable[..., tuple[Any, list[Tensor]]]:
    def wrapped(
        parts: list[Tensor], *args: Structure
    ) -> tuple[Any, list[Tensor]]:
        others: Structure = None

        def loss(parts: list[Tensor]) -> Scalar:
            nonlocal others
            found = fn(parts, *args)
            if has_others:
                found, others = found
            return found

        value, gradients = _differentiate(loss, parts)
        return ((value, others) if has_others else value), gradients

    return wrapped


def hvp(fn: Callable[..., Scalar]) -> Callable[..., list[Tensor]]:
    gradient = value_and_grad(fn)

    def product(
        parts: list[Tensor], tangents: list[Tensor], *args: Structure
    ) -> list[Tensor]:
        def slope(parts: list[Tensor]) -> Scalar:
            _, gradients = gradient(parts, *args)
            pairs = zip(gradients, tangents, strict=True)
            return tf.add_n(
                [tf.reduce_sum(g * tf.cast(t, g.dtype)) for g, t in pairs]
            )

        return _differentiate(slope, parts)[1]

    return product


def _differentiate(
    fn: Callable[[list[Tensor]], Structure],
    parts: list[Tensor],
    cotangents: Structure = None,
) -> tuple[Structure, list[Tensor]]:
    """`fn(parts)` and its gradients, or cotangents times its derivatives."""
    if tf.executing_eagerly():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parts)
            values = fn(parts)
        gradients = tape.gradient(
            values, parts, cotangents, unconnected_gradients=ZERO
        )
    else:
        # Within a graph, a tape computes a wrong gradient of a `jvp` of a
        # `jvp`.
        parts = [tf.identity(part) for part in parts]
        values = fn(parts)
        gradients = tf.gradients(
            values, parts, cotangents, unconnected_gradients=ZERO
        )
    # The gradients of gathers (in embeddings) are `IndexedSlices`.
    return values, [tf.convert_to_tensor(g) for g in gradients]


def jvp(
    fn: Callable[..., Structure],
) -> Callable[..., tuple[Structure, Structure]]:
    @backward_where_needed(fn)
    def product(
        parts: list[Tensor], tangents: list[Tensor], *args: Structure
    ) -> tuple[Structure, Structure]:
        with tf.autodiff.ForwardAccumulator(parts, tangents) as forward:
            values = fn(parts, *args)
        derivatives = forward.jvp(values, unconnected_gradients=ZERO)
        # After TensorFlow has traced operations with dozens of different
        # shapes, it leaves the shapes of these derivatives unknown.
        tf.nest.map_structure(
            lambda d, v: d.set_shape(v.shape), derivatives, values
        )
        return values, derivatives

    return product


def vjp(fn: Callable[..., Structure]) -> Callable[..., list[Tensor]]:
    def product(
        parts: list[Tensor], cotangents: Structure, *args: Structure
    ) -> list[Tensor]:
        return _differentiate(lambda p: fn(p, *args), parts, cotangents)[1]

    return product
