"""Results of a process with four simulated devices, on one and on all.

    export XLA_FLAGS=--xla_force_host_platform_device_count=4
    python four_devices.py OUT

It writes a dict from a case's name to a pair of dicts, of one device and of
four.
"""

import contextlib
import logging
import pickle
import re
import sys
import tempfile
import warnings
from unittest import mock

import keras
import numpy as np
from keras import layers
from keras import ops

import kormos
from kormos import backend
from kormos.data import memory

ROWS = 63
COLLECTIVES = (
    r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"[\w.\-]*\("
)
METHODS = ("lbfgs", "l-bfgs-b", "ssbroyden", "trust-ncg", "lm")
EPOCHS = 12


class Coupled(keras.Model):
    """A loss in which every row depends on all others."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)
        self.dense.build((None, 3))
        self.built = True

    def call(self, x):
        return self.dense(x)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        rest = y_pred - y
        return ops.mean((rest - ops.mean(rest)) ** 2) + ops.max(rest) ** 2


def points(rows=ROWS, outputs=1):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    y = np.sin(x[:, :outputs]) + 0.1 * rng.normal(size=(rows, outputs))
    return x, y, rng.uniform(0.5, 2, size=rows)


def network(*inside, loss="mse", outputs=1, **settings):
    keras.utils.set_random_seed(1)
    penalty = keras.regularizers.L2(1e-3)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="tanh", name="hidden"),
            *inside,
            layers.Dense(outputs, kernel_regularizer=penalty),
        ]
    )
    model.compile(loss=loss, metrics=["mae"], **settings)
    return model


def weighted(**options):
    x, y, w = points()
    return network(), (x, y, w), options


def with_reduction(reduction):
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    x, y, w = points()
    return network(loss=loss), (x, y, w), {}


def masked():
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, size=(ROWS, 4))
    y = rng.normal(size=(ROWS, 4, 1))
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(3, 2, mask_zero=True),
            layers.Dense(1),
        ]
    )
    model.compile(loss="mse", weighted_metrics=["mae"])
    return model, (x, y, rng.uniform(0.5, 2, size=(ROWS, 4))), {}


def several_outputs():
    keras.utils.set_random_seed(1)
    x, y, w = points(outputs=2)
    inputs = keras.Input((3,))
    inside = layers.Dense(3, activation="tanh")(inputs)
    outputs = {
        "a": layers.Dense(1, name="a")(inside),
        "b": layers.Dense(1, activation="sigmoid", name="b")(inside),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        loss={"a": "mse", "b": "binary_crossentropy"},
        loss_weights={"a": 1.0, "b": 0.3},
    )
    y = {"a": y[:, :1], "b": (y[:, 1:] > 0).astype("float64")}
    return model, (x, y, {"a": w, "b": w[::-1].copy()}), {}


def normalized(**options):
    x, y, w = points()
    drop = layers.Dropout(0.2, seed=3)
    model = network(layers.BatchNormalization(), drop)
    return model, (x, y, w), {"training": True, **options}


def coupled():
    keras.utils.set_random_seed(1)
    model = Coupled()
    model.compile()
    x, y, _ = points()
    return model, (x, y, None), {}


def few_rows():
    return network(), points(3), {}


def even_rows():
    return network(), points(64), {}


def small_chunks(rows):
    """Data in chunks of 8 rows on 4 devices, of 2 rows on one."""
    return network(), points(rows), {"is_cut": True}


# A function for each case, and whether its Gauss-Newton matrix is compared.
CASES = {
    "weights": (weighted, True),
    "weights, in chunks of 10": (lambda: weighted(batch_size=10), True),
    "sum": (lambda: with_reduction("sum"), False),
    "mean with weights": (
        lambda: with_reduction("mean_with_sample_weight"),
        False,
    ),
    "masks": (masked, True),
    "several outputs": (several_outputs, True),
    "batch normalization": (normalized, False),
    "batch normalization, in chunks of 10": (
        lambda: normalized(batch_size=10),
        False,
    ),
    "rows that depend on each other": (coupled, False),
    "fewer rows than devices": (few_rows, False),
    "rows that divide": (even_rows, False),
    "many chunks that divide": (lambda: small_chunks(64), True),
    "many chunks and some rows": (lambda: small_chunks(ROWS), True),
    "streamed": (lambda: weighted(batch_size=10, stream=True), True),
}


@contextlib.contextmanager
def cut(is_cut):
    """Makes chunks of few rows, as if there were a million."""
    numbers = 8 if is_cut else backend.chunk_numbers()
    fewest = 2 if is_cut else memory._FEWEST_ROWS
    with (
        mock.patch.object(backend, "chunk_numbers", lambda: numbers),
        mock.patch.object(memory, "_FEWEST_ROWS", fewest),
    ):
        yield


def derivatives(case):
    """Everything that an objective computes, and the layout of its rows."""
    make, has_matrix = CASES[case]
    model, (x, y, w), options = make()
    with cut(options.pop("is_cut", False)):
        objective = kormos.Objective(model, x, y, sample_weight=w, **options)
    theta = objective.initial_position()
    vector = np.random.default_rng(2).normal(size=theta.size)
    loss, grad = objective.value_and_grad(theta)
    found = {
        "value": objective.value(theta),
        "loss": loss,
        "gradient": grad,
        "Hessian product": objective.hvp(theta, vector),
        "metrics": list(objective.evaluate(theta).values()),
    }
    if has_matrix:
        matrix = objective.gauss_newton()
        found["normal equations"] = np.triu(matrix.normal_equations(theta)[2])
        rows = matrix.rows(theta)[2]
        found["rows"] = rows.T @ rows
        found["product"] = matrix.product(theta, vector)
        found["bend"] = matrix.bend(theta, vector)
        with backend.float64():
            compiled = objective.arguments.total(
                objective.program.gauss_newton.normal_equations,
                theta,
                shapes=[(), theta.shape, 2 * theta.shape],
            )
        found["compiled equations"] = np.triu(np.array(compiled[2]))
    return found, layout(objective, theta)


def layout(objective, theta):
    """The layout of rows on devices, and the exchanges of these."""
    # Other backends read the names of the cases only.
    import jax

    if objective.is_streamed:
        return {}
    leaves = jax.tree.leaves(objective.arguments.chunks)
    with backend.float64():
        text = (
            jax.jit(objective.program.value_and_grad)
            .lower(theta, *next(objective.arguments.pieces()))
            .compile()
            .as_text()
        )
    return {
        "devices": [len(a.sharding.device_set) for a in leaves],
        "copied": [a.sharding.is_fully_replicated for a in leaves],
        "most rows": max(
            s.data.shape[0] for s in leaves[-1].addressable_shards
        ),
        "exchanges": sorted(re.findall(COLLECTIVES, text)),
    }


def fitted(optimizer, **options):
    """A fit: its losses, evaluations and weights."""
    model = network(optimizer=optimizer)
    x, y, w = points()
    history = model.fit(
        x, y, sample_weight=w, epochs=EPOCHS, verbose=0, **options
    )
    return {
        "loss": history.history["loss"],
        "mae": history.history["mae"],
        "evaluations": int(history.result.evaluations),
    }, model


def split_fit():
    """A fit, and the layout of the kernel that a distribution may split."""
    found, model = fitted("lbfgs")
    kernel = model.get_layer("hidden").kernel.value
    shards = kernel.addressable_shards
    return {**found, "kernel": sorted({s.data.shape for s in shards})}


def compilations():
    """The number of times that a fit compiles its loop, in several calls."""
    import jax

    found = []

    class Handler(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    logger, handler = logging.getLogger("jax"), Handler()
    logger.addHandler(handler)
    logger.propagate = False
    jax.config.update("jax_log_compiles", True)
    fitted("lbfgs")
    jax.config.update("jax_log_compiles", False)
    logger.removeHandler(handler)
    begun = [m for m in found if m.startswith("Finished XLA compilation")]
    return sum("jit(advance)" in message for message in begun)


def least_squares():
    """A fit of a function with data of two groups."""
    keras.utils.set_random_seed(1)
    k = keras.Variable(np.array([1.0, 0.5]), dtype="float64")
    rng = np.random.default_rng(0)
    t = rng.uniform(0, 2, size=ROWS)
    data = {
        "fall": (t, 2 * np.exp(-t) + 0.01 * rng.normal(size=ROWS)),
        "start": np.zeros((5, 1)),
    }

    def residuals(data):
        t, y = data["fall"]
        return {
            "fall": k[0] * ops.exp(-k[1] * t) - y,
            "start": k[0] * ops.exp(-data["start"]) - 2,
        }

    result = kormos.least_squares(
        residuals, [k], data=data, batch_size=25, verbose=0
    )
    return {
        "loss": result.loss,
        "evaluations": int(result.evaluations),
        "at": ops.convert_to_numpy(k),
    }


def minimized():
    """A minimum of a function that contains its rows."""
    v = keras.Variable(np.zeros(3), dtype="float64")
    x, y = map(ops.convert_to_tensor, points()[:2])

    def loss():
        return ops.mean(ops.log(ops.cosh(ops.sum(x * v, 1) - y[:, 0])))

    result = kormos.minimize(loss, [v], "lbfgs", verbose=0)
    return {
        "loss": result.loss,
        "evaluations": int(result.evaluations),
        "at": ops.convert_to_numpy(v),
    }


def spread_memory(folder):
    """A fit with pairs on all devices, which is saved and continued."""
    memory = {"memory": 30, "keep_state": True}
    usual, _ = fitted(kormos.optimizers.LBFGS(**memory))
    spread, model = fitted(kormos.optimizers.LBFGS(shard_memory=True, **memory))
    path = f"{folder}/model.keras"
    blocks = model.optimizer.solver_state._state.store
    spread["parts"] = [
        {s.data.shape[-1] for s in b.addressable_shards} for b in blocks
    ]
    spread["copied"] = [b.sharding.is_fully_replicated for b in blocks]
    model.save(path)
    x, y, w = points()

    def go_on(model):
        found = model.fit(
            x,
            y,
            sample_weight=w,
            initial_epoch=EPOCHS,
            epochs=EPOCHS + 5,
            resume=True,
            verbose=0,
        )
        return found.history["loss"]

    loaded = keras.models.load_model(path)
    spread["setting"] = loaded.optimizer.shard_memory
    spread["resumed"] = go_on(model)
    spread["resumed from a file"] = go_on(loaded)
    on_devices(None)
    loaded = keras.models.load_model(path)
    loaded.optimizer.shard_memory = None
    spread["resumed on one device"] = go_on(loaded)
    return usual, spread


def on_devices(distribution):
    keras.distribution.set_distribution(distribution)


def split_model():
    """A distribution that splits a layer's kernel over two devices."""
    distribution = keras.distribution
    mesh = distribution.DeviceMesh(
        (2, 2), ("batch", "model"), distribution.list_devices()
    )
    layouts = distribution.LayoutMap(mesh)
    layouts[".*hidden/kernel"] = (None, "model")
    return distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch"
    )


def both(fn, distribution=None):
    """The results of a function on one device and on all."""
    on_devices(None)
    one = fn()
    on_devices(distribution or keras.distribution.DataParallel())
    return one, fn()


def main(path):
    found = {}
    for case in CASES:
        found[case] = both(lambda case=case: derivatives(case))
    model_parallel = both(lambda: derivatives("weights"), split_model())
    found["a model that is split"] = model_parallel
    found["a fit of a model that is split"] = both(split_fit, split_model())
    for method in METHODS:
        found[method] = both(lambda method=method: fitted(method)[0])
    found["least squares"] = both(least_squares)
    found["minimize"] = both(minimized)
    on_devices(keras.distribution.DataParallel())
    found["compilations"] = compilations()
    with tempfile.TemporaryDirectory() as folder:
        found["memory"] = spread_memory(folder)
    with open(path, "wb") as file:
        pickle.dump(found, file)


if __name__ == "__main__":
    warnings.simplefilter("ignore", kormos.ConvergenceWarning)
    # JAX warns if it cannot use the memory of a loop's state again.
    warnings.filterwarnings("error", "Some donated buffers")
    with kormos.precision("float64"):
        main(sys.argv[1])
