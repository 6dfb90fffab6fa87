"""What `fit` adds to the bare compiled value and gradient.

For two networks: milliseconds of a bare compiled call of the loss and its
gradient (with XLA on TensorFlow), and of an evaluation of
`fit(..., verbose=0)`, History included, by SciPy's L-BFGS-B and by `"lbfgs"`
with 1 and with 50 iterations to an epoch. All run alternately in one process
on one thread; the table gives medians over the rounds, and the loss reached.
Also the peak memory of a fit in 1 to 100 chunks.

    KERAS_BACKEND=jax python benchmarks/overhead.py
"""

import one_thread  # noqa: F401

# isort: split
import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings

import keras
import numpy as np

import kormos
from kormos import backend

NETS = {
    "2-20-20-1, 1,000 rows": ((20, 20), 1_000, 500),
    "2-64-64-1, 10,000 rows": ((64, 64), 10_000, 200),
}


def build(widths):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(w, activation="tanh") for w in widths]
    return keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])


def data(rows):
    x = np.random.default_rng(0).uniform(-1, 1, (rows, 2)).astype("float32")
    return x, (x**2).sum(axis=1, keepdims=True)


def bare_call(model, x, y):
    """The compiled loss and gradient that one would write by hand."""
    variables = model.trainable_variables
    x, y = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)

    def loss(values, x, y):
        scope = keras.StatelessScope(list(zip(variables, values, strict=True)))
        with scope:
            return keras.ops.mean((model(x) - y) ** 2)

    call = backend.compile(backend.value_and_grad(loss), xla=True)
    values = [v.value for v in variables]
    return lambda: float(call(values, x, y)[0])


def solvers():
    """Names of rows, with the optimizer and the iterations to an epoch."""
    # Tolerances of zero: every fit makes all of its evaluations.
    scipy = kormos.optimizers.ScipyBatchOptimizer(
        options={"ftol": 0.0, "gtol": 0.0}
    )
    ours = kormos.optimizers.LBFGS(ftol=0.0, gtol=0.0)
    return {
        "l-bfgs-b": (scipy, 1),
        "lbfgs": (ours, 1),
        "lbfgs, 50 a call": (ours, 50),
    }


def measure(widths, rows, evaluations, rounds):
    """Seconds of the bare call, and of an evaluation of each solver."""
    x, y = data(rows)
    model = build(widths)
    model.compile(optimizer="adam", loss="mse")
    start = model.get_weights()
    call = bare_call(model, x, y)
    call()

    def fit(optimizer, steps):
        return kormos.fit(
            model,
            x,
            y,
            optimizer=optimizer,
            epochs=evaluations // steps,
            steps_per_epoch=steps,
            max_evals=evaluations,
            verbose=0,
        )

    rivals = solvers()
    for optimizer, steps in rivals.values():
        fit(optimizer, steps)
    bare, seconds = [], {name: [] for name in rivals}
    loss = {}
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(evaluations):
            call()
        bare.append((time.perf_counter() - begin) / evaluations)
        for name, (optimizer, steps) in rivals.items():
            model.set_weights(start)
            begin = time.perf_counter()
            result = fit(optimizer, steps).result
            spent = time.perf_counter() - begin
            seconds[name].append(spent / result.evaluations)
            loss[name] = result.loss
    medians = {k: statistics.median(v) for k, v in seconds.items()}
    return statistics.median(bare), medians, loss


def peak_memory(chunks):
    """Megabytes at the peak of a fit of 400,000 rows in so many chunks."""
    rows = 400_000
    x, y = data(rows)
    model = build((64, 64))
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit(x, y, epochs=5, batch_size=rows // chunks, verbose=0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=int, metavar="CHUNKS")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", kormos.ConvergenceWarning)
    if arguments.memory:
        print(f"{peak_memory(arguments.memory):.0f}")
        return
    print(f"{keras.backend.backend()}, Keras {keras.__version__}, one thread")
    print("\n| network | solver | bare, ms | evaluation, ms | ratio | loss |")
    print("|---|---|---|---|---|---|")
    for name, (widths, rows, evaluations) in NETS.items():
        bare, medians, loss = measure(
            widths, rows, evaluations, arguments.rounds
        )
        for solver, seconds in medians.items():
            print(
                f"| {name} | {solver} | {bare * 1e3:.3f} "
                f"| {seconds * 1e3:.3f} | {seconds / bare:.2f} "
                f"| {loss[solver]:.1e} |"
            )
    print("\n| chunks of 400,000 rows | peak memory, MB |\n|---|---|")
    for chunks in (1, 4, 20, 100):
        command = [sys.executable, __file__, "--memory", str(chunks)]
        peak = subprocess.run(
            command, capture_output=True, check=True, text=True
        )
        print(f"| {chunks} | {peak.stdout.strip()} |")


if __name__ == "__main__":
    main()
