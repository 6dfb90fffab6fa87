"""How often the checks of a fit refuse right problems, and miss faults.

    python tests/helpers/refusals.py 300

Right problems are drawn at random: networks of many layers and losses, and
curves to fit, with sizes of parameters and inputs from 1e-6 to 1e6, in float32
and float64, from random starts and from good fits. None may be refused, except
by a method that names a loss which it does not support. Faults are planted in
the same problems, and all of them should be found. The script prints a table.
"""

import collections
import os
import sys
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras import layers
from keras import ops

import kormos

# The messages of methods about losses or layers that they do not support.
BY_NAME = (
    "whose second derivatives are zero",
    "which mixes rows",
    "takes no rows of its own",
    "must take a single row",
    # TensorFlow's second derivatives of these layers are really wrong.
    "%, layers layer_normalization",
)
SMALLEST, LARGEST = -6, 6


class WrongGradient(layers.Layer):
    def call(self, x):
        return x + ops.stop_gradient(2 * x)


class MixedRows(layers.Layer):
    def call(self, x):
        return x - 0.5 * ops.mean(x, axis=0, keepdims=True)


class Random(layers.Layer):
    """Draws in Python, where it cannot be made repeatable."""

    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(0)

    def call(self, x):
        return x * float(self.random.uniform(0.5, 1.5))


class Stale(layers.Layer):
    """Reads a variable in a way that cannot be intercepted."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        own = self.scale._value
        own = own.detach() if hasattr(own, "detach") else own
        return x * self.scale * ops.cast(ops.convert_to_tensor(own), x.dtype)


FAULTS = {
    "wrong gradient": WrongGradient,
    "rows that mix": MixedRows,
    "a stale value": Stale,
    "a random layer": Random,
}


def network(random, fault=None):
    """A model with data, and the largest of their sizes."""
    width = int(random.integers(2, 9))
    activation = random.choice(
        ["tanh", "sigmoid", "relu", "gelu", "softplus", "elu", "leaky_relu"]
    )
    stack = [keras.Input((3,))]
    for _ in range(int(random.integers(1, 4))):
        stack.append(layers.Dense(width, str(activation)))
        if random.uniform() < 0.2:
            stack.append(layers.LayerNormalization())
    if fault is not None:
        stack.append(fault())
    stack.append(layers.Dense(1))
    model = keras.Sequential(stack)
    inputs = 10.0 ** random.uniform(SMALLEST, LARGEST)
    targets = 10.0 ** random.uniform(SMALLEST, LARGEST)
    # Near a start that initializers make, and far.
    weights = 10.0 ** random.uniform(-3, 1) if random.uniform() < 0.5 else 1.0
    if fault is not None:
        inputs = targets = weights = 1.0
    for variable in model.trainable_variables:
        variable.assign(weights * variable.value)
    x = random.normal(size=(40, 3))
    y = targets * np.sin(x.sum(axis=1, keepdims=True))
    return model, inputs * x, y


def fitted(random, method, good, fault=None):
    """Fits a network for two iterations, after a good fit if `good` is true."""
    model, x, y = network(random, fault)
    loss = "mse" if random.uniform() < 0.7 else "log_cosh"
    if good:
        model.compile("l-bfgs-b", loss=loss)
        model.fit(x, y, epochs=100, verbose=0)
    model.compile(method, loss=loss)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[keras.callbacks.Callback()])


def curve(random, good):
    """A curve that is fitted by `lm`, in any units."""
    unit_x, unit_y = 10.0 ** random.uniform(SMALLEST, LARGEST, size=2)
    t = ops.convert_to_tensor(unit_x * np.linspace(0.1, 4, 30))
    kind = random.choice(["decay", "growth", "peak"])
    true = np.array([unit_y, 1 / unit_x, 0.5])
    far = 10.0 ** random.uniform(-1.5, 1.5, size=3)
    start = true * (1 + 1e-9 * random.normal(size=3)) if good else true * far
    p, q, r = (keras.Variable(v, dtype="float64") for v in start)

    def fn(p, q, r):
        if kind == "decay":
            return p * (ops.exp(-q * t) + r)
        if kind == "growth":
            return p / (1 + ops.exp(r - q * t))
        return p * ops.exp(-((q * t - r) ** 2))

    y = fn(*true)
    kormos.least_squares(lambda: fn(p, q, r) - y, [p, q, r], max_iterations=2)


def right(random):
    """Tries one right problem.

    Returns:
        Its kind, and the message of a refusal, or `None`.
    """
    good = bool(random.uniform() < 0.3)
    dtype = str(random.choice(["float32", "float64"]))
    method = str(random.choice(["lm", "newton-cg", "l-bfgs-b"]))
    is_curve = random.uniform() < 0.3
    kind = "curves, lm" if is_curve else f"networks, {method}, {dtype}"
    with kormos.precision("float64" if is_curve else dtype):
        try:
            if is_curve:
                curve(random, good)
            else:
                fitted(random, method, good)
        except ValueError as error:
            if not any(name in str(error) for name in BY_NAME):
                return kind, str(error)
    return kind, None


def found(name, random):
    """Whether a planted fault is refused, by `lm` or by `kormos.check`."""
    try:
        fitted(random, "lm", False, FAULTS[name])
    except ValueError:
        return True
    model, x, y = network(random, FAULTS[name])
    model.compile("lbfgs", loss="mse")
    report = kormos.check(model, x, y)
    return any(f.is_fatal for f in report.findings if not f.passed)


def main(count):
    warnings.simplefilter("ignore")
    tried, refused = collections.Counter(), collections.Counter()
    for seed in range(count):
        keras.utils.set_random_seed(seed)
        kind, message = right(np.random.default_rng(seed))
        tried[kind] += 1
        if message is not None:
            refused[kind] += 1
            print(f"seed {seed}, {kind}: {message}")
        keras.backend.clear_session(free_memory=False)
    print(f"\n{keras.backend.backend()}\n\n| right | tried | refused |")
    print("|---|---|---|")
    for kind in sorted(tried):
        print(f"| {kind} | {tried[kind]} | {refused[kind]} |")
    print(f"| all | {tried.total()} | {refused.total()} |")
    print("\n| planted | tried | found |\n|---|---|---|")
    for name in FAULTS:
        seeds = range(max(1, count // 30))
        caught = sum(found(name, np.random.default_rng(s)) for s in seeds)
        print(f"| {name} | {len(seeds)} | {caught} |")


if __name__ == "__main__":
    main(int(sys.argv[1]))
