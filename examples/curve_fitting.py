"""Curve fitting with Levenberg-Marquardt: a network, and a certified problem.

A network 1-20-1 learns the sinc curve, in a thousand steps of Adam or in a
hundred of `"lm"`. Then the script fits Misra1a of NIST's Statistical Reference
Datasets, with two parameters and 14 observations, and compares the fit with the
certified values.

    KERAS_BACKEND=jax python examples/curve_fitting.py
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np

import kormos

# NIST StRD, Misra1a (dental research, monomolecular adsorption).
VOLUMES = [
    10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05,
    61.01, 66.40, 75.47, 81.78,
]  # fmt: skip
PRESSURES = [
    77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3,
    536.8, 593.1, 689.1, 760.0,
]  # fmt: skip
CERTIFIED = np.array([2.3894212918e2, 5.5015643181e-4])


def network():
    return keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(20, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )


def sinc(quick):
    """The curve, and the fits by two optimizers."""
    keras.utils.set_random_seed(0)
    x = np.linspace(-1, 1, 200 if quick else 2_000)[:, None]
    y = np.sinc(10 * x / np.pi)
    model = network()
    start, runs = model.get_weights(), {}
    for name, optimizer, epochs in (
        ("Adam", keras.optimizers.Adam(1e-2), 20 if quick else 1_000),
        ("Levenberg-Marquardt", "lm", 10 if quick else 100),
    ):
        model.set_weights(start)
        model.compile(optimizer=optimizer, loss="mse")
        history = model.fit(
            x, y, epochs=epochs, batch_size=len(x), shuffle=False, verbose=0
        )
        losses = history.history["loss"]
        runs[name] = losses, model.predict(x, verbose=0)
        print(f"{name:20s} {epochs:5d} epochs: mean squared error", end=" ")
        print(f"{losses[-1]:.1e}")
    return x, y, runs


def misra1a():
    """Fits b1 (1 - exp(-b2 x)) from the harder of NIST's two starts."""
    x, y = (keras.ops.array(v, dtype="float64") for v in (PRESSURES, VOLUMES))
    b1 = keras.Variable(500.0, dtype="float64", name="b1")
    b2 = keras.Variable(1e-4, dtype="float64", name="b2")
    result = kormos.least_squares(
        lambda: b1 * (1 - keras.ops.exp(-b2 * x)) - y, [b1, b2], reduction="sum"
    )
    print(f"\nMisra1a: {result}")
    for variable, certified in zip((b1, b2), CERTIFIED, strict=True):
        found = float(variable.numpy())
        digits = -np.log10(max(abs(found / certified - 1), 1e-16))
        print(
            f"{variable.name}  {found:.10e}  certified {certified:.10e}", end=""
        )
        print(f"  {digits:.1f} digits")


def main(quick=False, out="out"):
    kormos.enable_float64()
    x, y, runs = sinc(quick)
    misra1a()
    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, (losses, found) in runs.items():
        axes[0].loglog(np.arange(1, len(losses) + 1), losses, label=name)
        axes[1].semilogy(x, np.maximum(abs(found - y), 1e-12), label=name)
    axes[0].set(xlabel="epoch", ylabel="mean squared error")
    axes[1].set(xlabel="x", ylabel="error of sin(10 x) / (10 x)")
    axes[1].set_xticks([-1, -0.5, 0, 0.5, 1])
    for axis in axes:
        axis.grid(color="0.9")
        axis.legend()
    path = pathlib.Path(out) / "curve_fitting.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    main(**vars(parser.parse_args()))
