"""Burgers' equation for a network, its exact solution, and Adam to start.

u_t + u u_x = nu u_xx on -1 < x < 1, 0 < t < 1, u(0, x) = -sin(pi x).
"""

import time
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

import kormos

VISCOSITY = 0.01 / np.pi
CANDIDATES = 50_000


class Method(NamedTuple):
    """A method, the iterations between two draws of points, and their number.

    `every` is zero if the points stay the same.
    """

    optimizer: str
    every: int
    points: int


def sampler(count, rng):
    return rng.uniform((0, -1), (1, 1), (count, 2))


def exact(nu, t, x):
    """The solution of Cole and Hopf on a grid, by Gauss-Hermite quadrature."""
    z, weights = np.polynomial.hermite.hermgauss(200)
    spread = np.sqrt(4 * nu * t)[:, None, None]
    y = np.pi * (x[:, None] - spread * z)
    powers = -np.cos(y) / (2 * np.pi * nu)
    weights = weights * np.exp(powers - powers.max(axis=-1, keepdims=True))
    return -((weights * np.sin(y)).sum(-1) / weights.sum(-1)).reshape(-1)


class Burgers:
    """The equation and its network, and runs of a method."""

    # The inputs of the network.
    inputs = 3

    def __init__(self, dtype, nu=VISCOSITY, widths=(20, 20, 20)):
        self.nu, self.dtype = nu, dtype
        layers = [
            keras.layers.Dense(
                width, activation="tanh", kernel_initializer="glorot_normal"
            )
            for width in widths
        ]
        last = keras.layers.Dense(1, kernel_initializer="glorot_normal")
        self.net = keras.Sequential(
            [keras.Input((self.inputs,)), *layers, last]
        )
        t, x = np.linspace(0, 0.99, 100), np.linspace(-1, 1, 256)
        grid = np.meshgrid(t, x, indexing="ij")
        self._grid = np.stack(grid, axis=-1).reshape(-1, 2).astype(dtype)
        self._exact = exact(nu, t, x)

    def u(self, points):
        t, angle = points[:, :1], np.pi * points[:, 1:]
        features = ops.concatenate([t, ops.cos(angle), ops.sin(angle)], axis=1)
        return t * self.net(features) - ops.sin(angle)

    def residuals(self, points):
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
        return u_t + value * u_x - self.nu * u_xx

    def error(self, weights):
        """The relative error of these weights."""
        self.net.set_weights(weights)
        found = ops.convert_to_numpy(self.u(self._grid))[:, 0]
        difference = found - self._exact
        return np.linalg.norm(difference) / np.linalg.norm(self._exact)

    def misfits(self, points):
        """The residuals on the points that `data` gives."""
        return self.residuals(points)

    def data(self, count):
        return sampler(count, np.random.default_rng(0))

    def run(self, weights, method, keep=1, **limits):
        """Fits from these weights: a `Trace`."""
        self.net.set_weights(weights)
        kept = {}

        def note(iteration, logs):
            if iteration % keep == 0:
                kept[iteration] = self.net.get_weights()

        callbacks = [note]
        if method.every:
            callbacks.append(
                kormos.callbacks.Resample(sampler, method.every, CANDIDATES)
            )
        result = kormos.least_squares(
            self.misfits,
            self.net.trainable_variables,
            method.optimizer,
            data=self.data(method.points),
            batch_size=1_024,
            callbacks=callbacks,
            **limits,
        )
        history = result.history
        count = len(history["seconds"])
        kept[count] = self.net.get_weights()
        kept[0] = weights
        marks = sorted(kept)
        return Trace(
            marks,
            [[0, *history["fg_evals"]][i] for i in marks],
            [[0, *history["seconds"]][i] for i in marks],
            [self.error(kept[i]) for i in marks],
        )


class Trace(NamedTuple):
    """Iterations, evaluations and seconds, and the error at each."""

    iterations: list
    evaluations: list
    seconds: list
    errors: list

    def seconds_to(self, error):
        pairs = zip(self.seconds, self.errors, strict=True)
        return next((s for s, e in pairs if e <= error), np.inf)

    def error_at(self, iteration):
        pairs = zip(self.iterations, self.errors, strict=True)
        return next((e for i, e in pairs if i >= iteration), np.nan)


class Adam:
    """Adam by optax, on points that are drawn again every 250 steps."""

    def __init__(self, problem, points):
        import jax
        import optax

        self._problem, self._points = problem, points
        variables = problem.net.trainable_variables

        def residuals(parts, points):
            mapping = list(zip(variables, parts, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return problem.residuals(points)

        def loss(parts, points):
            return ops.mean(residuals(parts, points) ** 2)

        rate = optax.exponential_decay(5e-3, 1_000, 0.9)
        self._solver = optax.adam(rate)

        def update(parts, state, points):
            grads = jax.grad(loss)(parts, points)
            change, state = self._solver.update(grads, state)
            return optax.apply_updates(parts, change), state

        self._update = jax.jit(update)
        self._residuals = jax.jit(residuals)

    def run(self, weights, steps=None, seconds=np.inf, keep=250):
        """The weights and the `Trace` of a run."""
        rng = np.random.default_rng(0)
        parts = [ops.convert_to_tensor(w) for w in weights]
        state, done, times, kept = self._solver.init(parts), 0, [], []
        begin = time.perf_counter()
        while done < (steps or np.inf):
            if done % 250 == 0:
                points = self._draw(parts, rng)
            parts, state = self._update(parts, state, points)
            done += 1
            if done % keep == 0:
                parts[0].block_until_ready()
                times.append(time.perf_counter() - begin)
                kept.append([np.array(p) for p in parts])
                if times[-1] > seconds:
                    break
        marks = [keep * (i + 1) for i in range(len(times))]
        errors = [self._problem.error(w) for w in kept]
        return [np.array(p) for p in parts], Trace(marks, marks, times, errors)

    def _draw(self, parts, rng):
        points = sampler(CANDIDATES, rng).astype(self._problem.dtype)
        sizes = np.abs(np.array(self._residuals(parts, points)))[:, 0]
        weights = (sizes / sizes.mean() + 1).astype("float64")
        chosen = rng.choice(
            CANDIDATES,
            self._points,
            replace=False,
            p=weights / weights.sum(),
        )
        return points[chosen]


def fresh(problem, seed):
    """Weights that the initializers draw."""
    keras.utils.set_random_seed(seed)
    return keras.models.clone_model(problem.net).get_weights()


def start(problem, points, seed, steps):
    """The weights that Adam reaches from a random start, and its seconds."""
    weights = fresh(problem, seed)
    return Adam(problem, points).run(weights, steps, keep=steps)
