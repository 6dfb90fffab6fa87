"""A proxy of style transfer: an image, optimized through a frozen network.

The unknowns are the 1,728 numbers of an image of 24 x 24 pixels. The loss is
that of style transfer: the distance of deep features from those of a content
image, and of Gram matrices of all features from those of a style image. The
features are those of a convolutional network with fixed random weights, in
float32. Every method starts at the same image, keeps 10 pairs unless its row
says otherwise, has no tolerances and makes the same number of iterations.
Methods with bounds keep the pixels between 0 and 1. kormos' own `"lbfgs"` and
TensorFlow Probability's method have no bounds here: compare their losses only
with those of other rows without bounds.

Evaluations are counted inside the loss in a separate run that is not timed.
They include those of line searches, and the one by which kormos finds which
variables a loss reads. The timed runs alternate in one process on one thread.
Seconds are medians, and the spread is a part of the median. Peers compile once,
in a first call. The iterations of `kormos.minimize` are timed by its history,
from the first to the last, and the time is scaled to all of them (with
`"lbfgs"`, the first 50 are one compiled call and count as the first). Compiling
is the rest of its first call.

    KERAS_BACKEND=tensorflow python benchmarks/style.py

SciPy gets the loss and gradient of TensorFlow, eagerly and in a graph, or with
KERAS_BACKEND=jax those that JAX compiles. TensorFlow is the default.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import one_thread  # noqa: F401

# isort: split
import importlib.util
import statistics
import time
import warnings

import keras
import numpy as np
import recording
import scipy.optimize
from keras import ops

import kormos

SIDE = 24
STYLE_WEIGHT = 100.0
MEMORY = 10
EXACT = {"gtol": 0, "ftol": 0}
SCIPY = {"maxcor": MEMORY, **EXACT}
# Iterations that kormos makes in a compiled call if nothing needs each of them.
A_CALL = 50
IS_JAX = keras.backend.backend() == "jax"

if IS_JAX:
    import jax
else:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def network():
    tensors = [keras.Input((SIDE, SIDE, 3))]
    for width, stride in (16, 1), (32, 2), (32, 1), (64, 2):
        layer = keras.layers.Conv2D(width, 3, stride, "same", activation="relu")
        tensors.append(layer(tensors[-1]))
    net = keras.Model(tensors[0], tensors[1:])
    # Keras' own initializers draw different numbers on each backend.
    rng = np.random.default_rng(0)
    for layer in net.layers[1:]:
        scale = (2 / np.prod(layer.kernel.shape[:-1])) ** 0.5
        layer.kernel.assign(scale * rng.standard_normal(layer.kernel.shape))
    net.trainable = False
    return net


def images():
    """Content, style and start, each `(1, SIDE, SIDE, 3)` in [0, 1]."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:SIDE, :SIDE] / SIDE
    disc = (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.1
    content = np.stack([disc, 0.3 + 0.4 * u, 1 - v], axis=-1)
    stripes = 0.5 + 0.5 * np.sin(40 * (u + 0.5 * v))
    style = np.stack([stripes, stripes**2, rng.random(u.shape)], axis=-1)
    start = rng.random(content.shape)
    return [i[None].astype("float32") for i in (content, style, start)]


def gram(features):
    rows = ops.reshape(features, (-1, features.shape[-1]))
    return ops.matmul(ops.transpose(rows), rows) / rows.shape[0]


class Style:
    """The loss of an image.

    Attributes:
        losses: a list to which the loss of every evaluation is appended, or
            `None`.
    """

    def __init__(self):
        content, style, self.start = images()
        self._net = network()
        self._content = self._net(content)[2]
        self._grams = [gram(f) for f in self._net(style)]
        self.losses = None

    def __call__(self, image):
        features = self._net(ops.reshape(image, self.start.shape))
        pairs = zip(features, self._grams, strict=True)
        style = sum(ops.mean((gram(f) - g) ** 2) for f, g in pairs)
        content = ops.mean((features[2] - self._content) ** 2)
        loss = content + STYLE_WEIGHT * style
        if self.losses is not None:
            note(self.losses, loss)
        return loss


def note(losses, loss):
    """Appends the loss whenever it is computed, in compiled functions too."""
    if IS_JAX:
        jax.debug.callback(losses.append, loss, ordered=True)
    else:
        tf.numpy_function(losses.append, [loss], [])


def value_and_grad(style):
    if IS_JAX:
        return jax.jit(jax.value_and_grad(style))

    def both(theta):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            value = style(theta)
        return value, tape.gradient(value, theta)

    return both


def graph(style):
    return tf.function(value_and_grad(style), autograph=False)


def timed(fn, *args, **kwargs):
    begin = time.perf_counter()
    value = fn(*args, **kwargs)
    return value, time.perf_counter() - begin


def scipy_(make, bounded):
    """SciPy's L-BFGS-B around a function of float32 tensors."""

    def prepare(style):
        fn, start = make(style), style.start.reshape(-1).astype("float64")

        def evaluate(theta):
            loss, grad = fn(ops.convert_to_tensor(theta.astype("float32")))
            return float(loss), np.asarray(grad, "float64")

        compiling = timed(evaluate, start)[1]

        def run(iterations):
            found, seconds = timed(
                scipy.optimize.minimize,
                evaluate,
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=[(0, 1)] * start.size if bounded else None,
                options=SCIPY | {"maxiter": iterations, "maxfun": 10**9},
            )
            return found.x, found.nit, seconds, compiling

        return run

    return prepare


def tfp_(style):
    """TensorFlow Probability's L-BFGS, entirely in a graph."""
    import tensorflow_probability as tfp

    fn, start = value_and_grad(style), style.start.reshape(-1)

    @tf.function(autograph=False)
    def solve(iterations):
        return tfp.optimizer.lbfgs_minimize(
            fn,
            start,
            num_correction_pairs=MEMORY,
            tolerance=0,
            x_tolerance=0,
            max_iterations=iterations,
        )

    compiling = timed(solve, tf.constant(0))[1]

    def run(iterations):
        found, seconds = timed(solve, tf.constant(iterations))
        count = int(found.num_iterations)
        return found.position.numpy(), count, seconds, compiling

    return run


def ours(method, a_call, box=None, options=None):
    def prepare(style):
        image = keras.Variable(style.start)

        def run(iterations):
            image.assign(style.start)
            result, whole = timed(
                kormos.minimize,
                lambda: style(image.value),
                [image],
                method,
                max_iterations=iterations,
                bounds=[(image, box)] if box else None,
                options=options,
            )
            times, count = result.history["seconds"], result.iterations
            seconds = times[-1] - times[a_call - 1]
            seconds *= count / (count - a_call)
            return image.numpy(), count, seconds, whole - seconds

        return run

    return prepare


def methods():
    """A dict from a name to a function that prepares runs for a `Style`.

    A run takes a number of iterations, and returns the image, the number of
    iterations that were made, their seconds, and the seconds of compiling.
    """
    makes = {"jax.jit": value_and_grad}
    if not IS_JAX:
        makes = {"eager": value_and_grad, "tf.function": graph}
    found = {f"SciPy L-BFGS-B, {k}": scipy_(v, True) for k, v in makes.items()}
    last, make = makes.popitem()
    found[f"SciPy L-BFGS-B, {last}, no bounds"] = scipy_(make, False)
    if not IS_JAX and importlib.util.find_spec("tensorflow_probability"):
        found["TFP lbfgs_minimize, tf.function, no bounds"] = tfp_
    for name, memory in ("", MEMORY), (", 100 pairs", 100):
        lbfgs = kormos.optimizers.LBFGS(memory=memory, **EXACT)
        found[f'kormos "lbfgs"{name}, no bounds'] = ours(lbfgs, A_CALL)
    found['kormos "l-bfgs-b"'] = ours("l-bfgs-b", 1, (0, 1), SCIPY)
    return found


def count(style, prepare, iterations):
    """The losses of all evaluations of a run."""
    style.losses = losses = []
    run = prepare(style)
    losses.clear()
    run(iterations)
    style.losses = None
    return losses


def row(style, name, losses, runs):
    images, iterations, seconds, compiling = zip(*runs, strict=True)
    image = images[-1].astype("float32")
    low, high = float(image.min()), float(image.max())
    return [
        name,
        int(iterations[-1]),
        len(losses),
        statistics.median(seconds),
        recording.spread(seconds),
        max(compiling),
        float(style(ops.convert_to_tensor(image))),
        "yes" if low >= 0 and high <= 1 else f"no, {low:.2f} to {high:.2f}",
    ]


def main():
    args = recording.parser(__doc__).parse_args()
    warnings.simplefilter("ignore", kormos.ConvergenceWarning)
    iterations, repeats = (100, 1) if args.quick else (300, 3)
    record = recording.Record("style", __doc__, args)
    style, rivals = Style(), methods()
    losses = {k: count(style, p, iterations) for k, p in rivals.items()}
    prepared = {name: prepare(style) for name, prepare in rivals.items()}
    rounds = [
        {name: run(iterations) for name, run in prepared.items()}
        for _ in range(repeats)
    ]
    rows = [
        row(style, name, losses[name], [runs[name] for runs in rounds])
        for name in rivals
    ]
    head = "method, iterations, evaluations, seconds, spread, compiling s"
    record.table(
        f"{iterations} iterations on {keras.backend.backend()}",
        [*head.split(", "), "final loss", "pixels in [0, 1]"],
        rows,
    )
    series = {
        name: (range(1, len(y) + 1), np.minimum.accumulate(y))
        for name, y in losses.items()
    }
    record.curves(
        f"Image through a network, {keras.backend.backend()}",
        "evaluations",
        "lowest loss so far",
        series,
        xscale="linear",
    )


if __name__ == "__main__":
    main()
