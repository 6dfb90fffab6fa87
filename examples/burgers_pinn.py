"""Burgers' equation by a physics-informed network: Adam, then LM or SSBroyden.

u_t + u u_x = 0.01 / pi u_xx, u(0, x) = -sin(pi x), u(t, -1) = u(t, 1) = 0, and
a shock at x = 0. Derivatives in the inputs are `keras.ops.jvp`, so the same
code runs on all backends; points are drawn anew where residuals are large.

    KERAS_BACKEND=jax python examples/burgers_pinn.py
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import kormos

VISCOSITY = 0.01 / np.pi


class Burgers(keras.Model):
    """Its outputs are residuals; u = -sin(pi x) + t N holds the conditions."""

    def __init__(self):
        super().__init__()
        layers = [keras.layers.Dense(20, activation="tanh") for _ in range(3)]
        self.net = keras.Sequential(
            [keras.Input((3,)), *layers, keras.layers.Dense(1)]
        )

    def u(self, points):
        t, angle = points[:, :1], np.pi * points[:, 1:]
        features = ops.concatenate([t, ops.cos(angle), ops.sin(angle)], axis=1)
        return t * self.net(features) - ops.sin(angle)

    def call(self, points):
        along_t, along_x = (
            ops.broadcast_to(
                ops.convert_to_tensor(unit, points.dtype), ops.shape(points)
            )
            for unit in np.eye(2)
        )

        def slope(points):
            return ops.jvp(self.u, (points,), (along_x,))

        (value, u_x), (_, u_xx) = ops.jvp(slope, (points,), (along_x,))
        _, u_t = ops.jvp(self.u, (points,), (along_t,))
        return u_t + value * u_x - VISCOSITY * u_xx


def sampler(count, rng):
    return rng.uniform((0, -1), (1, 1), (count, 2)).astype("float32")


def exact(t, x):
    """Cole and Hopf's solution, by Gauss and Hermite's rule."""
    z, weights = np.polynomial.hermite.hermgauss(200)
    spread = np.sqrt(4 * VISCOSITY * t)[:, None, None]
    y = np.pi * (x[:, None] - spread * z)
    powers = -np.cos(y) / (2 * np.pi * VISCOSITY)
    weights = weights * np.exp(powers - powers.max(axis=-1, keepdims=True))
    return -(weights * np.sin(y)).sum(-1) / weights.sum(-1)


def main(quick=False, out="out", method="lm"):
    keras.utils.set_random_seed(0)
    model = Burgers()
    t, x = np.linspace(0, 1, 101), np.linspace(-1, 1, 257)
    grid = np.stack(np.meshgrid(t, x, indexing="ij"), axis=-1)
    grid, solution = grid.reshape(-1, 2).astype("float32"), exact(t, x)

    def found():
        values = model.u(ops.convert_to_tensor(grid))
        return ops.convert_to_numpy(values).reshape(solution.shape)

    def error():
        wrong = np.linalg.norm(found() - solution)
        return f"relative error {wrong / np.linalg.norm(solution):.1e}"

    count, epochs = (256, 2) if quick else (4_096, 60)
    points = sampler(count, np.random.default_rng(0))
    model.compile(optimizer=keras.optimizers.Adam(5e-3), loss="mse")
    model.fit(points, np.zeros((count, 1)), 128, epochs=epochs, verbose=0)
    print(f"Adam, {epochs} epochs: {error()}")

    def show(iteration, logs):
        if iteration % (10 if method == "lm" else 200) == 0:
            print(
                f"{method} {iteration:4d}: loss {logs['loss']:.1e}, {error()}"
            )

    resample = kormos.callbacks.Resample(
        sampler, every=10 if method == "lm" else 200, candidates=20_000
    )
    iterations = 60 if method == "lm" else 2_000
    result = kormos.least_squares(
        model,
        model.trainable_variables,
        method,
        data=points,
        batch_size=1_024,
        max_iterations=5 if quick else iterations,
        callbacks=[show, resample],
    )
    print(f"{result}\n{method}: {error()}")

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    difference = np.log10(abs(found() - solution) + 1e-9)
    for axis, image, title, colors in (
        (axes[0], found(), "u", "RdBu_r"),
        (axes[1], difference, "log10 of the error of u", "viridis"),
    ):
        mesh = axis.pcolormesh(t, x, image.T, cmap=colors, rasterized=True)
        figure.colorbar(mesh, ax=axis)
        axis.set(xlabel="t", ylabel="x", title=title)
    path = pathlib.Path(out) / "burgers_pinn.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    parser.add_argument("--method", default="lm", help='or "ssbroyden"')
    main(**vars(parser.parse_args()))
