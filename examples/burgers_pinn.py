"""Burgers' equation with a physics-informed network, by Adam, LM and SSBroyden.

It solves u_t + u u_x = 0.01 / pi u_xx with u(0, x) = -sin(pi x), with a shock
at x = 0. The fit draws new points, more of them where residuals are large.

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
    """Outputs residuals; u = -sin(pi x) + t N satisfies the conditions."""

    def __init__(self):
        super().__init__()
        hidden = [keras.layers.Dense(20, activation="tanh") for _ in range(3)]
        self.net = keras.Sequential([*hidden, keras.layers.Dense(1)])
        self.net.build((None, 3))

    def u(self, points):
        t, angle = points[:, :1], np.pi * points[:, 1:]
        features = ops.concatenate([t, ops.cos(angle), ops.sin(angle)], axis=1)
        return t * self.net(features) - ops.sin(angle)

    def call(self, points):
        def along(axis):
            unit = ops.convert_to_tensor(np.eye(2)[axis], points.dtype)
            return ops.broadcast_to(unit, ops.shape(points))

        def slope(points):
            return ops.jvp(self.u, (points,), (along(1),))

        (value, u_x), (_, u_xx) = ops.jvp(slope, (points,), (along(1),))
        _, u_t = ops.jvp(self.u, (points,), (along(0),))
        return u_t + value * u_x - VISCOSITY * u_xx


def sampler(count, rng):
    return rng.uniform((0, -1), (1, 1), (count, 2)).astype("float32")


def exact(t, x):
    """The solution of Cole and Hopf, by Gauss-Hermite quadrature."""
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
    grid = ops.convert_to_tensor(grid.reshape(-1, 2), "float32")
    solution = exact(t, x)

    def found():
        return ops.convert_to_numpy(model.u(grid)).reshape(solution.shape)

    def error():
        wrong = np.linalg.norm(found() - solution)
        return f"relative error {wrong / np.linalg.norm(solution):.1e}"

    count, epochs = (256, 2) if quick else (4_096, 120)
    points = sampler(count, np.random.default_rng(0))
    model.compile(optimizer=keras.optimizers.Adam(5e-3), loss="mse")
    model.fit(points, np.zeros((count, 1)), 128, epochs=epochs, verbose=0)
    print(f"Adam, {epochs} epochs: {error()}")

    every, iterations = (10, 60) if method == "lm" else (200, 2_000)

    def show(iteration, logs):
        if iteration % every == 0:
            print(f"{iteration:6d}: loss {logs['loss']:.1e}, {error()}")

    result = kormos.least_squares(
        model,
        model.trainable_variables,
        method,
        data=points,
        max_iterations=5 if quick else iterations,
        callbacks=[show, kormos.callbacks.Resample(sampler, every, 20_000)],
    )
    print(f"{result}\n{method}: {error()}")

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    difference = np.log10(abs(found() - solution) + 1e-9)
    for axis, image, title, colors in (
        (axes[0], found(), "u", "RdBu_r"),
        (axes[1], difference, "log10 of the error of u", "viridis"),
    ):
        figure.colorbar(axis.pcolormesh(t, x, image.T, cmap=colors), ax=axis)
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
