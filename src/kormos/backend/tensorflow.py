"""Differentiation and compilation with TensorFlow."""

import contextlib

import keras
import tensorflow as tf

_NOT_COMPILED = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
)
ZERO = tf.UnconnectedGradients.ZERO


def compile(fn, xla=False):
    return tf.function(fn, jit_compile=xla, autograph=False)


def compile_loop(fn):
    fast = compile(fn, xla=True)
    chosen = None

    def call(*args):
        nonlocal chosen
        if chosen is None:
            try:
                result = fast(*args)
                chosen = fast
                return result
            except _NOT_COMPILED:
                # A layer has an operation that XLA lacks.
                chosen = compile(fn)
        return chosen(*args)

    return call


def dry_run(fn, *args):
    return fn(*args)


def scalar(tensor):
    return tensor


def set_row(matrix, index, row):
    start = (index, tf.zeros_like(index))
    return keras.ops.slice_update(matrix, start, row[tf.newaxis])


def wide():
    return contextlib.nullcontext()


def repeatable():
    # Keras draws by the state of its seed generators alone.
    return contextlib.nullcontext()


def value_and_grad(fn):
    def wrapped(parts, *args):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parts)
            loss = fn(parts, *args)
        gradients = tape.gradient(loss, parts, unconnected_gradients=ZERO)
        # Gathers (embeddings) give `IndexedSlices`.
        return loss, [tf.convert_to_tensor(g) for g in gradients]

    return wrapped


def hvp(fn):
    gradient = value_and_grad(fn)

    def product(parts, tangents, *args):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parts)
            _, gradients = gradient(parts, *args)
            slope = tf.add_n(
                [
                    tf.reduce_sum(g * tf.cast(t, g.dtype))
                    for g, t in zip(gradients, tangents, strict=True)
                ]
            )
        products = tape.gradient(slope, parts, unconnected_gradients=ZERO)
        return [tf.convert_to_tensor(p) for p in products]

    return product


def jacobian(fn):
    def wrapped(parts, *args):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parts)
            values = fn(parts, *args)
        return tape.jacobian(values, parts, unconnected_gradients=ZERO)

    return wrapped
