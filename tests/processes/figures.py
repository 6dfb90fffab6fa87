"""The figures of one or several processes: a child script of the tests.

It writes `figures-INDEX.npz` into the given folder. Each process computes with
its own rows.
"""

from connected import COUNT
from connected import INDEX

# isort: split
import pathlib
import sys

import keras
import numpy as np

import kormos

kormos.enable_float64()
keras.config.set_floatx("float64")
# JAX makes variables only of values that all processes have.
keras.utils.set_random_seed(0)
ROWS = 63
rng = np.random.default_rng(0)
FOUND = {}


def own(array, cut):
    """The rows of this process; the first process has `cut` rows."""
    if COUNT == 1:
        return array
    return array[:cut] if INDEX == 0 else array[cut:]


def dense(loss="mse", **compile_args):
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(
        4, "tanh", kernel_regularizer=keras.regularizers.L2(0.01)
    )(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(loss=loss, **compile_args)
    return model


def masked():
    inputs = keras.Input((5, 2))
    hidden = keras.layers.Masking()(inputs)
    hidden = keras.layers.SimpleRNN(3, return_sequences=True)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(loss="mse", weighted_metrics=["mae"])
    return model


def two_outputs():
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    outputs = {
        "a": keras.layers.Dense(1, name="a")(hidden),
        "b": keras.layers.Dense(3, "softmax", name="b")(hidden),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        loss={"a": "mse", "b": "sparse_categorical_crossentropy"},
        loss_weights={"a": 1.0, "b": 0.3},
        metrics={"a": "mae", "b": "accuracy"},
    )
    return model


def logistic():
    """A model whose loss has one minimum."""
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(
        1, "sigmoid", kernel_regularizer=keras.regularizers.L2(0.01)
    )(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(loss="binary_crossentropy", metrics=["mae"])
    return model


def set_weights(model):
    drawn = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(0.5 * drawn.standard_normal(variable.shape))


x = rng.standard_normal((ROWS, 3))
y = np.sin(x.sum(axis=1, keepdims=True))
above = (y + 0.5 * rng.standard_normal(y.shape) > 0).astype("float64")
w = rng.uniform(0.5, 2, ROWS)
sequences = rng.standard_normal((ROWS, 5, 2))
sequences[::3, 3:] = 0
steps = sequences.sum(axis=2, keepdims=True)
classes = {"a": y, "b": rng.integers(0, 3, ROWS)}
metrics = ["mae", keras.metrics.RootMeanSquaredError()]

MODELS = {
    "weights": (dense(metrics=metrics), x, y, w),
    "sum": (dense(keras.losses.MeanSquaredError(reduction="sum")), x, y, w),
    "mean with weights": (
        dense(
            keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
        ),
        x,
        y,
        w,
    ),
    "masks": (masked(), sequences, steps, None),
    "two outputs": (two_outputs(), x, classes, None),
}


def note(name, **values):
    FOUND.update({f"{name}: {k}": np.asarray(v) for k, v in values.items()})


def look(name, cut):
    """Everything that a method may request from an objective."""
    model, x, y, w = MODELS[name]
    set_weights(model)
    objective = kormos.Objective(
        model,
        own(x, cut),
        keras.tree.map_structure(lambda a: own(a, cut), y),
        sample_weight=None if w is None else own(w, cut),
        batch_size=20,
    )
    theta = objective.initial_position()
    vector = np.linspace(-1, 1, theta.size)
    loss, grad = objective.value_and_grad(theta)
    matrices = objective.gauss_newton()
    own_loss, own_grad, matrix = matrices.normal_equations(theta, keep=True)
    bend = matrices.bend(theta, vector)
    _, _, rows = matrices.rows(theta)
    note(
        f"{name}, {cut}",
        value=objective.value(theta),
        loss=loss,
        grad=grad,
        product=objective.hvp(theta, vector),
        matrix_loss=own_loss,
        matrix_grad=own_grad,
        matrix=np.triu(matrix),
        from_rows=np.triu(rows.T @ rows),
        matrix_product=matrices.product(theta, vector),
        bend=bend,
        rows=objective.rows,
    )
    note(f"{name}, {cut}, evaluated", **objective.evaluate(theta))


def fit(method, cut, **settings):
    """A whole fit, from the weights of the first process."""
    model = logistic()
    set_weights(model)
    # JAX compares a value that is assigned over all processes.
    if INDEX and keras.backend.backend() == "torch":
        model.set_weights([3 * v for v in model.get_weights()])
    history = kormos.fit(
        model,
        own(x, cut),
        own(above, cut),
        sample_weight=own(w, cut),
        validation_data=(own(x, cut), own(above, cut)),
        optimizer=method,
        epochs=100,
        verbose=0,
        callbacks=[keras.callbacks.EarlyStopping(patience=1000)],
        **settings,
    )
    result = history.result
    note(
        f"fit {method} {settings}",
        loss=result.loss,
        success=result.success,
        validation=history.history["val_loss"][-1],
        metric=history.history["mae"][-1],
        theta=kormos.Objective(model, x, above).initial_position(),
    )
    note(
        f"count {method} {settings}", evaluations=history.history["fg_evals"][3]
    )


def least_squares(name, cut, **settings):
    """A fit of residuals, one block of which depends on no data."""
    a = keras.Variable(np.array([1.0, 0.3, -0.2]), name="a")

    def residuals(data):
        fitted = a[0] * keras.ops.exp(-a[1] * data["t"]) + a[2]
        return {"fit": fitted - data["y"], "prior": 0.1 * (a - 1)}

    t = np.linspace(0, 5, ROWS)
    target = 2 * np.exp(-0.7 * t) + 0.1 * np.cos(40 * t)
    result = kormos.least_squares(
        residuals,
        [a],
        data={"t": own(t, cut), "y": own(target, cut)},
        reduction="sum",
        **settings,
    )
    found = keras.ops.convert_to_numpy(a)
    note(f"fit least squares {name}", loss=result.loss, a=found)


def losses_of_rows(cut):
    """A likelihood of rows, with a penalty."""
    a = keras.Variable(np.array([0.5, 0.0]), name="a")

    def losses(data):
        mean = a[0] + a[1] * data["t"]
        rows = keras.ops.exp(mean) - data["count"] * mean
        return {"rows": rows, "penalty": 0.01 * keras.ops.sum(a**2)}

    t = np.linspace(0, 1, ROWS)
    result = kormos.minimize(
        losses,
        [a],
        data={"t": own(t, cut), "count": own(np.arange(ROWS) % 5.0, cut)},
    )
    found = keras.ops.convert_to_numpy(a)
    note("fit losses of rows", loss=result.loss, a=found)


def main():
    folder, *part = sys.argv[1:]
    if part:
        look("weights", 44)
        fit("l-bfgs-b", 44)
        save(folder)
        return
    # JAX takes seconds to compile each, so it only computes some of them.
    is_compiled = keras.backend.backend() == "jax"
    for name in ("weights", "two outputs") if is_compiled else MODELS:
        for cut in (44,) if is_compiled else (44, ROWS - 1):
            look(name, cut)
    others = () if is_compiled else ("ssbroyden", "lm", "newton")
    for method in ("lbfgs", "l-bfgs-b", "trust-ncg", *others):
        fit(method, 44)
    fit("l-bfgs-b", 44, stream=True, batch_size=8)
    losses_of_rows(44)
    least_squares("plain", 44)
    least_squares("robust", 44, loss="soft_l1", f_scale="auto")
    save(folder)


def save(folder):
    np.savez(pathlib.Path(folder) / f"figures-{INDEX}.npz", **FOUND)


main()
