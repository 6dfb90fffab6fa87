"""Differentiation and compilation with TensorFlow."""

import contextlib

import tensorflow as tf

ZERO = tf.UnconnectedGradients.ZERO


def compile(fn, xla=False):
    return tf.function(fn, jit_compile=xla, autograph=False)


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
