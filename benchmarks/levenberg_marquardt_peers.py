"""Levenberg-Marquardt of other libraries, as `least_squares.py` runs it.

Each runs without tolerances from a flat vector in float64. An iteration is a
step of optimistix and jaxopt, whether accepted or rejected; a Jacobian of
SciPy; and a training step of tf-levenberg-marquardt and
torch-levenberg-marquardt, which makes up to ten attempts with all rows in one
batch.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import keras
import numpy as np
import scipy.optimize

IS_JAX = keras.backend.backend() == "jax"
# MINPACK does not accept zero for all three.
TOLERANCES = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)


class Run(NamedTuple):
    """The findings of a run.

    Attributes:
        points: the result after each requested number of iterations: a flat
            vector, or the loss if a peer fits its own model.
        seconds: the seconds of an iteration, without compiling.
        compiling: the additional seconds until the end of the first iteration.
    """

    points: list
    seconds: float
    compiling: float


def run_of(points, times):
    """A `Run`, from the seconds at the end of each iteration."""
    each = (times[-1] - times[0]) / max(len(times) - 1, 1)
    return Run(points, each, max(times[0] - each, 0.0))


def optimistix_solver(residuals, tolerance, steps):
    """A function of a start, to be compiled: the solution and the steps."""
    import optimistix

    solver = optimistix.LevenbergMarquardt(tolerance, tolerance)

    def solve(theta):
        found = optimistix.least_squares(
            lambda theta, _: residuals(theta),
            solver,
            theta,
            max_steps=steps,
            throw=False,
        )
        return found.value, found.stats["num_steps"]

    return solve


def optimistix_(residuals, marks):
    import jax

    compiled = {}

    def run(theta):
        points, compiling = [], 0.0
        for mark in marks:
            if mark not in compiled:
                begin = time.perf_counter()
                solve = jax.jit(optimistix_solver(residuals, 0.0, mark))
                compiled[mark] = solve.lower(theta).compile()
                compiling = time.perf_counter() - begin
            begin = time.perf_counter()
            end, steps = map(np.array, compiled[mark](theta))
            seconds = time.perf_counter() - begin
            points.append(end)
        return Run(points, seconds / int(steps), compiling)

    return run


def jaxopt_(residuals, marks):
    import jax
    import jaxopt

    solver = jaxopt.LevenbergMarquardt(
        residuals, solver="cholesky", materialize_jac=True, jit=False
    )
    init, update = jax.jit(solver.init_state), jax.jit(solver.update)

    def run(theta):
        points, times = [], []
        begin = time.perf_counter()
        state = init(theta)
        for iteration in range(1, marks[-1] + 1):
            theta, state = update(theta, state)
            theta.block_until_ready()
            times.append(time.perf_counter() - begin)
            if iteration in marks:
                points.append(np.array(theta))
        return run_of(points, times)

    return run


class Enough(Exception):
    """The run has made its last iteration."""


def scipy_(method):
    def prepare(residuals, marks):
        import jax

        fn, jac = jax.jit(residuals), jax.jit(jax.jacfwd(residuals))

        def run(theta):
            # SciPy evaluates the Jacobian at the start and at each accepted
            # point.
            seen, times = [], []
            begin = time.perf_counter()

            def jacobian(theta):
                seen.append(np.array(theta))
                times.append(time.perf_counter() - begin)
                if len(seen) > marks[-1]:
                    raise Enough
                return np.array(jac(theta))

            try:
                found = scipy.optimize.least_squares(
                    lambda theta: np.array(fn(theta)),
                    theta,
                    jacobian,
                    method=method,
                    x_scale="jac",
                    max_nfev=100 * marks[-1],
                    **TOLERANCES,
                )
                seen.append(found.x)
                times.append(time.perf_counter() - begin)
            except Enough:
                pass
            points = [seen[min(m, len(seen) - 1)] for m in marks]
            return run_of(points, times[1:])

        return run

    return prepare


SOLVERS = {
    # Each name has a function and the module that this function needs.
    "optimistix LM": (optimistix_, "optimistix"),
    "jaxopt LM": (jaxopt_, "jaxopt"),
    "SciPy lm": (scipy_("lm"), "scipy"),
}


def available(names):
    """A dict from the available ones of these names to functions.

    Returns:
        Functions `(residuals, marks)` that return another one, which takes a
        flat vector and returns a `Run`.
    """
    return {
        name: prepare
        for name, (prepare, module) in SOLVERS.items()
        if IS_JAX and name in names and has(module)
    }


def has(module):
    return importlib.util.find_spec(module) is not None


# NIST's regressions, to convergence.


def nist_scipy(residuals, **options):
    """Function of a start that returns a solution."""
    import jax

    fn, jac = jax.jit(residuals), jax.jit(jax.jacfwd(residuals))

    def solve(start):
        try:
            return scipy.optimize.least_squares(
                lambda b: np.array(fn(b)),
                start,
                lambda b: np.array(jac(b)),
                **options,
                **TOLERANCES,
            ).x
        except ValueError:  # Some residuals are not finite.
            return np.full(len(start), np.nan)

    return solve


def nist_optimistix(residuals):
    import jax

    solve = jax.jit(optimistix_solver(residuals, 1e-12, 10_000))
    return lambda start: solve(start)[0]


def nist_jaxopt(residuals):
    import jax
    import jaxopt

    solver = jaxopt.LevenbergMarquardt(
        residuals,
        maxiter=10_000,
        tol=0.0,
        solver="cholesky",
        materialize_jac=True,
    )
    return jax.jit(lambda start: solver.run(start).params)


def nist_peers():
    """Dict from a name to a function of residuals, as above."""
    if not IS_JAX:
        return {}
    peers = {}
    for method in ("lm", "trf"):
        for scale in (1.0, "jac"):
            options = {"method": method, "x_scale": scale}
            peers[f"SciPy {method}, x_scale={scale}"] = bound(options)
    if has("optimistix"):
        peers["optimistix LM"] = nist_optimistix
    if has("jaxopt"):
        peers["jaxopt LM"] = nist_jaxopt
    return peers


def bound(options):
    return lambda residuals: nist_scipy(residuals, **options)


# Peers that fit their own model: a tanh network of two layers.


def torch_network(weights, x, y, marks):
    import torch
    from torch_levenberg_marquardt.training import LevenbergMarquardtModule

    torch.set_num_threads(1)
    x, y, *weights = map(torch.tensor, (x, y, *weights))
    layers = []
    for kernel, bias in (weights[:2], weights[2:]):
        layer = torch.nn.Linear(*kernel.shape, dtype=kernel.dtype)
        layer.weight.data, layer.bias.data = kernel.T.contiguous(), bias
        layers.append(layer)
    model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    module = LevenbergMarquardtModule(model)
    return trained(lambda: float(module.training_step(x, y)[1]), marks)


def trained(step, marks):
    """The `Run` of a function that makes a step and returns the loss."""
    losses, times, begin = [], [], time.perf_counter()
    for _ in range(marks[-1]):
        losses.append(step())
        times.append(time.perf_counter() - begin)
    return run_of([losses[m - 1] for m in marks], times)


def tensorflow_network(weights, x, y, marks):
    """Runs `serve` in a process with Keras on TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "problem.npz"
        np.savez(path, x, y, *weights)
        threads = {f"TF_NUM_{k}OP_THREADS": "1" for k in ("INTER", "INTRA")}
        found = subprocess.run(
            [sys.executable, __file__, str(path), *map(str, marks)],
            env={**os.environ, **threads, "KERAS_BACKEND": "tensorflow"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            text=True,
        )
    return Run(*json.loads(found.stdout.splitlines()[-1]))


def serve(path, *marks):
    import tensorflow as tf
    from tf_levenberg_marquardt.model import ModelWrapper

    x, y, *weights = np.load(path).values()
    keras.backend.set_floatx(x.dtype.name)
    layers = [
        keras.layers.Dense(weights[0].shape[1], activation="tanh"),
        keras.layers.Dense(weights[2].shape[1]),
    ]
    model = keras.Sequential([keras.Input((x.shape[1],)), *layers])
    model.set_weights(weights)
    wrapper = ModelWrapper(model)
    wrapper.compile(optimizer=keras.optimizers.SGD(learning_rate=1.0))
    # Otherwise a rejected first step would leave weights of zero.
    wrapper.trainer.backup_variables()
    x, y = tf.constant(x), tf.constant(y)
    step = wrapper.trainer.train_step
    run = trained(lambda: float(step(x, y)[0]), [int(m) for m in marks])
    print(json.dumps(run))


def network_peers():
    """Dict from a name to a function `(weights, x, y, marks)`: a `Run`."""
    peers = {}
    if has("torch_levenberg_marquardt"):
        peers["torch-levenberg-marquardt"] = torch_network
    if has("tf_levenberg_marquardt"):
        peers["tf-levenberg-marquardt"] = tensorflow_network
    return peers


if __name__ == "__main__":
    serve(*sys.argv[1:])
