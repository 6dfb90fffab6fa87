"""Linear regression: an exact optimum, and the same model by Adam.

Ridge regression has one minimum. L-BFGS finds it in about ten iterations with a
sequential model, Newton-CG in as few with a functional model, and both agree
with the normal equations. Adam stays above it, because of the noise of its
batches.

    KERAS_BACKEND=jax python examples/linear_regression.py
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np

import kormos

ROWS, COLUMNS, PENALTY = 1_000, 50, 1e-3


def data():
    random = np.random.RandomState(1)
    w = random.normal(size=COLUMNS)
    x = random.normal(size=(ROWS, COLUMNS))
    return x, x.dot(w)[:, None] + 0.1 * random.normal(size=(ROWS, 1))


def layer():
    return keras.layers.Dense(
        1,
        use_bias=False,
        kernel_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(PENALTY),
    )


def sequential():
    return keras.Sequential([keras.Input((COLUMNS,)), layer()])


def functional():
    inputs = keras.Input((COLUMNS,))
    return keras.Model(inputs, layer()(inputs))


def exact_loss(x, y):
    """The minimum, by the normal equations."""
    matrix = x.T @ x / ROWS + PENALTY * np.eye(COLUMNS)
    w = np.linalg.solve(matrix, x.T @ y / ROWS)
    return float(np.mean((x @ w - y) ** 2) + PENALTY * np.sum(w**2))


def show(name, history):
    print(f"\n{name}\nepoch          loss    |gradient|  evaluations")
    columns = (history.history[k] for k in ("loss", "grad", "fg_evals"))
    for epoch, row in enumerate(zip(*columns, strict=True)):
        print(f"{epoch:5d}  {row[0]:12.8f}  {row[1]:12.2e}  {row[2]:11.0f}")
    print(history.result)


def main(quick=False, out="out"):
    kormos.enable_float64()
    x, y = data()
    losses = {}

    for name, build, method in (
        ("L-BFGS, sequential model", sequential, "l-bfgs-b"),
        ("Newton-CG, functional model", functional, "newton-cg"),
    ):
        model = build()
        model.compile(optimizer=method, loss="mse")
        history = model.fit(x, y, epochs=20, verbose=0)
        show(name, history)
        losses[name] = history.history["loss"]

    model = sequential()
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    epochs = 3 if quick else 60
    history = model.fit(x, y, epochs=epochs, verbose=0)
    losses["Adam, batches of 32"] = history.history["loss"]

    lowest = exact_loss(x, y)
    print(f"\nnormal equations             {lowest:.12f}")
    for name, values in losses.items():
        print(
            f"{name:27s}  {values[-1]:.12f}  {values[-1] - lowest:8.1e} above"
        )

    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, values in losses.items():
        above = np.maximum(np.array(values) - lowest, 1e-16)
        axes.semilogy(np.arange(1, len(values) + 1), above, "o-", label=name)
    axes.set(xlabel="epoch", ylabel="loss above the minimum", xscale="log")
    axes.grid(color="0.9")
    axes.legend()
    path = pathlib.Path(out) / "linear_regression.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    main(**vars(parser.parse_args()))
