"""Derivatives of many values at once with TensorFlow, vectorized."""

import contextlib

import tensorflow as tf

from kormos.backend.tensorflow import ZERO
from kormos.backend.tensorflow import jvp
from kormos.backend.tensorflow import on_cpu

# Outputs of a row that are differentiated one by one: more take long to trace,
# and what vectorizes them does not know the loops of recurrent layers.
_UNROLLED = 8

# What TensorFlow raises of loops, in recurrent layers say, that it cannot
# vectorize.
_NOT_VECTORIZED = (TypeError, ValueError, NotImplementedError)


def jacobian(fn):
    def wrapped(parts, *args):
        with tf.GradientTape(
            watch_accessed_variables=False, persistent=True
        ) as tape:
            tape.watch(parts)
            values = fn(parts, *args)
        return _jacobian(tape, values, parts)

    return wrapped


def _jacobian(tape, values, parts):
    def derivatives(is_vectorized):
        return tape.jacobian(
            values,
            parts,
            unconnected_gradients=ZERO,
            experimental_use_pfor=is_vectorized,
        )

    try:
        with _quiet():
            return _sound(lambda: derivatives(True))
    except (_BrokenProduct, *_NOT_VECTORIZED):
        return derivatives(False)


def row_jacobian(fn, forward):
    def one(parts, row, is_alone=False):
        inner = [tf.identity(part) for part in parts]
        with tf.GradientTape(
            watch_accessed_variables=False, persistent=True
        ) as tape:
            tape.watch(inner)
            values = fn(inner, row)
            entries = tf.unstack(values)
        if is_alone and len(entries) > _UNROLLED:
            return values, _jacobian(tape, values, inner)
        if len(entries) > _UNROLLED:
            return values, tape.jacobian(
                values, inner, unconnected_gradients=ZERO
            )
        differentiate = (
            tape.gradient if tf.executing_eagerly() else tf.gradients
        )
        gradients = [
            differentiate(entry, inner, unconnected_gradients=ZERO)
            for entry in entries
        ]
        columns = zip(*gradients, strict=True)
        return values, [
            tf.stack([tf.convert_to_tensor(g) for g in column])
            for column in columns
        ]

    def wrapped(parts, rows):
        if forward:
            try:
                return _sound(lambda: _forward_jacobian(fn, parts, rows))
            except _BrokenProduct:
                pass
        return _map_rows(one, parts, rows)

    return wrapped


def _forward_jacobian(fn, parts, rows):
    """A column for each number in `parts`, of all rows at once."""
    values = tf.vectorized_map(lambda row: fn(parts, row), rows)
    jacobian = []
    for i, part in enumerate(parts):
        size = tf.size(part)

        def column(index, i=i, part=part, size=size):
            unit = tf.reshape(
                tf.one_hot(index, size, dtype=part.dtype), part.shape
            )
            tangents = [tf.zeros_like(p) for p in parts]
            tangents[i] = unit
            product = jvp(
                lambda p: tf.vectorized_map(lambda row: fn(p, row), rows)
            )
            return product(parts, tangents)[1]

        columns = tf.map_fn(
            column, tf.range(size), fn_output_signature=values.dtype
        )
        columns = tf.transpose(columns, (1, 2, 0))
        jacobian.append(tf.reshape(columns, (*values.shape, *part.shape)))
    return values, jacobian


def map_rows(fn, rows):
    return _map_rows(lambda _, row, is_alone=False: fn(row), [], rows)


def _map_rows(fn, parts, rows):
    """`fn(parts, row)` of every row, stacked; one by one it `is_alone`."""

    def together():
        return tf.vectorized_map(
            lambda row: fn(parts, row), rows, fallback_to_while_loop=False
        )

    def with_own_parts():
        # What is multiplied has then rows on both sides.
        count = tf.nest.flatten(rows)[0].shape[0]
        own = [tf.broadcast_to(p, (count, *p.shape)) for p in parts]
        return tf.vectorized_map(
            lambda pair: fn(*pair), (own, rows), fallback_to_while_loop=False
        )

    try:
        for mapped in (together, with_own_parts):
            with _quiet(), contextlib.suppress(_BrokenProduct):
                return _sound(mapped)
    except _NOT_VECTORIZED:
        pass
    first = fn(parts, tf.nest.map_structure(lambda r: r[0], rows), True)
    return tf.map_fn(
        lambda row: fn(parts, row, True),
        rows,
        fn_output_signature=tf.nest.map_structure(
            tf.type_spec_from_value, first
        ),
    )


class _BrokenProduct(Exception):
    """A product that TensorFlow computes wrongly, where it does not crash."""


def _sound(build):
    """`build()`, of operations in a graph.

    Raises:
        _BrokenProduct: if there is one.
    """
    if tf.executing_eagerly():
        traced = tf.function(lambda: _sound(build), autograph=False)
        return traced.get_concrete_function()()
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    values = build()
    if on_cpu() and any(map(_is_broken, graph.get_operations()[before:])):
        raise _BrokenProduct
    return values


def _is_broken(operation):
    """Whether oneDNN, of TensorFlow 2.21, writes past its own memory.

    It does where it broadcasts one matrix to many in four dimensions, the
    second of which is one. Vectorizing a row's product makes just these.
    """
    if not operation.type.startswith("BatchMatMul"):
        return False
    a, b = (tensor.shape for tensor in operation.inputs)
    if operation.inputs[0].dtype == tf.float64 or operation.get_attr("adj_x"):
        return False
    if a.rank is None or b.rank is None:
        return True
    broadcasts = a.rank == 4 and all(n in (1, None) for n in b[:-2])
    return broadcasts and a[0] != 1 and a[1] in (1, None)


@contextlib.contextmanager
def _quiet():
    """Without the graphs that TensorFlow logs before it raises."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        logger.setLevel(level)
