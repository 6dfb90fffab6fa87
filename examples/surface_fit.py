"""A surface, fitted by three optimizers: TFP's L-BFGS, kormos' own, and "lm".

A network 2-64-64-1 learns x1^2 + x2^2 on an 11 x 11 grid, always from the same
start. TensorFlow Probability's `lbfgs_minimize` (or SciPy's L-BFGS-B on another
backend) shows how to use the solver of another library: `kormos.Objective`
provides the loss and its gradient as functions of one flat vector.

    KERAS_BACKEND=tensorflow python examples/surface_fit.py
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize

import kormos


def data():
    side = np.linspace(-1, 1, 11)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return x, (x**2).sum(axis=1, keepdims=True)


def build():
    layers = [keras.layers.Dense(64, activation="tanh") for _ in range(2)]
    return keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])


def by_tfp(value_and_grad, start, evaluations):
    """TensorFlow Probability's method, which only has a limit on iterations."""
    import tensorflow as tf
    import tensorflow_probability as tfp

    def tensors(theta):
        loss, grad = value_and_grad(theta.numpy())
        return tf.constant(loss, tf.float64), tf.constant(grad, tf.float64)

    return tfp.optimizer.lbfgs_minimize(
        tensors,
        initial_position=start,
        num_correction_pairs=50,
        tolerance=1e-10,
        max_iterations=evaluations // 3,
    ).position


def by_scipy(value_and_grad, start, evaluations):
    options = {"maxcor": 50, "maxfun": evaluations, "ftol": 0, "gtol": 0}
    return scipy.optimize.minimize(
        value_and_grad, start, jac=True, method="l-bfgs-b", options=options
    ).x


def main(quick=False, out="out"):
    kormos.enable_float64()
    keras.utils.set_random_seed(0)
    x, y = data()
    model = build()
    model.compile(loss="mse")
    start, curves = model.get_weights(), {}
    evaluations = 30 if quick else 600

    objective, losses = kormos.Objective(model, x, y), []

    def value_and_grad(theta):
        loss, grad = objective.value_and_grad(theta)
        losses.append(loss)
        return loss, grad

    solve, name = by_scipy, "SciPy's L-BFGS-B"
    if keras.backend.backend() == "tensorflow":
        solve, name = by_tfp, "TFP's lbfgs_minimize"
    position = objective.initial_position()
    objective.assign(solve(value_and_grad, position, evaluations))
    # The trial points of line searches count as evaluations too.
    lowest = np.minimum.accumulate(losses)
    curves[name] = np.arange(1, len(losses) + 1), lowest

    for name, optimizer, epochs in (
        ("lbfgs", kormos.optimizers.LBFGS(), evaluations),
        ("lm", "lm", 5 if quick else 40),
    ):
        model.set_weights(start)
        model.compile(optimizer=optimizer, loss="mse")
        history = model.fit(
            x, y, epochs=epochs, max_evals=evaluations, verbose=0
        )
        print(f"{name}: {history.result}")
        rows = history.history
        curves[f'kormos, "{name}"'] = rows["fg_evals"], rows["loss"]

    print("\nsolver                 evaluations  mean squared error")
    for name, (counts, losses) in curves.items():
        print(f"{name:22s} {counts[-1]:11.0f}  {losses[-1]:18.1e}")

    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, (counts, losses) in curves.items():
        axes.loglog(counts, losses, label=name)
    axes.set(xlabel="evaluations", ylabel="mean squared error")
    axes.grid(color="0.9")
    axes.legend()
    path = pathlib.Path(out) / "surface_fit.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    main(**vars(parser.parse_args()))
