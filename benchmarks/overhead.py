"""What `fit` adds to the bare compiled value and gradient.

For two networks, the table has the milliseconds of a bare compiled call of the
loss and its gradient (with XLA on TensorFlow). It also has those of an
evaluation in `fit(..., verbose=0)`, including the History, by SciPy's L-BFGS-B,
and by `"lbfgs"` with epochs of 1 and of 50 iterations. All run in turn in one
process on one thread. Figures are medians over the rounds; the spread is the
part of the median by which they differ. The last column is the loss that was
reached.
"""

import one_thread  # noqa: F401

# isort: split
import statistics
import time
import warnings

import keras
import numpy as np
import recording

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
    """The compiled loss and gradient, as one would write them by hand."""
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
    """Names of rows, with the optimizer and the iterations of an epoch."""
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
    return statistics.median(bare), seconds, loss


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    warnings.simplefilter("ignore", kormos.ConvergenceWarning)
    record = recording.Record("overhead", __doc__, args)
    rows = []
    for name, (widths, count, evaluations) in NETS.items():
        bare, times, loss = measure(
            widths, count, evaluations, args.rounds or (2 if args.quick else 7)
        )
        for solver, found in times.items():
            seconds = statistics.median(found)
            cells = bare * 1e3, seconds * 1e3, recording.spread(found)
            rows.append([name, solver, *cells, seconds / bare, loss[solver]])
    columns = ["bare call, ms", "evaluation, ms", "spread", "ratio", "loss"]
    record.table(
        f"On {keras.backend.backend()}", ["network", "solver", *columns], rows
    )


if __name__ == "__main__":
    main()
