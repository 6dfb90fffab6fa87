"""An inverse problem: networks for a field and a coefficient, with one loss.

The equation is -(k u')' = 1 on 0 < x < 1 with u(0) = u(1) = 0. There are 30
noisy measurements of u, and none of k. One network represents u, another the
logarithm of k, and one loss trains both. It has three blocks: the data, the
equation, and a small penalty on the curvature of log k. Without the penalty, k
would be arbitrary where u' is zero, because the equation does not determine it
there.

    KERAS_BACKEND=jax python examples/inverse_problem.py
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
from keras import ops

import kormos

NOISE = 1e-4


def true_k(x):
    return 1 + 0.5 * np.sin(2 * np.pi * x)


def true_u(x):
    """Two integrals of the equation, by quadrature on a fine grid."""
    fine = np.linspace(0, 1, 20_001)
    flux = scipy.integrate.cumulative_simpson(
        1 / true_k(fine), x=fine, initial=0
    )
    load = scipy.integrate.cumulative_simpson(
        fine / true_k(fine), x=fine, initial=0
    )
    constant = load[-1] / flux[-1]
    return np.interp(x, fine, constant * flux - load)


def build():
    layers = [keras.layers.Dense(16, activation="tanh") for _ in range(2)]
    return keras.Sequential([keras.Input((1,)), *layers, keras.layers.Dense(1)])


def main(quick=False, out="out"):
    kormos.enable_float64()
    keras.utils.set_random_seed(0)
    field, coefficient = build(), build()
    rng = np.random.default_rng(0)
    places = np.sort(rng.uniform(0, 1, (30, 1)), axis=0)
    measured = true_u(places) + NOISE * rng.normal(size=places.shape)

    def u(x):
        return x * (1 - x) * field(x)

    def k(x):
        return ops.exp(coefficient(x))

    def derivative(fn, x):
        return ops.jvp(fn, (x,), (ops.ones_like(x),))[1]

    def residuals(data):
        x = data["inside"]
        balance = derivative(lambda x: k(x) * derivative(u, x), x) + 1
        return {
            "equation": balance,
            "data": (u(data["places"]) - data["measured"]) / NOISE,
            "smooth": derivative(lambda x: derivative(coefficient, x), x),
        }

    result = kormos.least_squares(
        residuals,
        field.trainable_variables + coefficient.trainable_variables,
        data={
            "inside": np.linspace(0, 1, 101)[:, None],
            "places": places,
            "measured": measured,
        },
        # The equation is exact, and the data have noise.
        loss_weights={"equation": 1e4, "smooth": 1e-3},
        max_iterations=10 if quick else 200,
    )
    print(result)
    x = np.linspace(0, 1, 201)[:, None]
    points = ops.convert_to_tensor(x)
    found_u, found_k = (ops.convert_to_numpy(fn(points)) for fn in (u, k))
    for name, found, true in (
        ("u", found_u, true_u(x)),
        ("k", found_k, true_k(x)),
    ):
        error = np.linalg.norm(found - true) / np.linalg.norm(true)
        print(f"relative error of {name}: {error:.1e}")

    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    axes[0].plot(places, measured, "k.", label="measured")
    axes[0].plot(x, found_u, label="network")
    axes[0].set(xlabel="x", ylabel="u")
    axes[1].plot(x, true_k(x), "k--", label="true")
    axes[1].plot(x, found_k, label="network, never measured")
    axes[1].set(xlabel="x", ylabel="k")
    for axis in axes:
        axis.grid(color="0.9")
        axis.legend()
    path = pathlib.Path(out) / "inverse_problem.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    main(**vars(parser.parse_args()))
