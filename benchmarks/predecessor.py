"""kormos and its predecessor, kormos 0.1.4, on the same networks.

Both libraries fit networks 2-20-20-1 on 1,000 rows and 2-64-64-1 on 10,000,
with tanh, to x1^2 + x2^2 with a mean squared error. The fits are in float32,
from the same weights, by L-BFGS-B with ten pairs; this library also uses
`"lbfgs"`. Each library runs in its own process on one thread, and they fit in
turn. The table has medians over the rounds, after one fit of each to warm up.
The spread is the part of the median by which fits differ. The predecessor gets
all rows in one batch.

Milliseconds of an evaluation are the time of a fit without tolerances, divided
by its number of evaluations of the loss and gradient. Those of a bare call are
for the function that the optimizer calls, without the optimizer. Seconds to a
loss begin with the call of `fit`. A ratio is the predecessor's milliseconds of
an evaluation in a fit, divided by those of the row.

The predecessor needs Python 3.9 and TensorFlow 2.12. If a `python3.9` is found,
an environment for it is made once, next to this file.

    KERAS_BACKEND=jax python benchmarks/predecessor.py
"""

import one_thread  # noqa: F401

# isort: split
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import recording

HERE = pathlib.Path(__file__).parent
ENVIRONMENT = HERE / ".venv-predecessor"
PACKAGES = ("kormos==0.1.4", "tensorflow>=2.9,<2.13", "numpy<2")
PREDECESSOR = "kormos 0.1.4, L-BFGS-B"
TARGET = 1e-4
NETS = {
    # Widths, rows and evaluations of a fit, by name.
    "2-20-20-1, 1,000 rows": ((2, 20, 20, 1), 1_000, 300),
    "2-64-64-1, 10,000 rows": ((2, 64, 64, 1), 10_000, 200),
}


def problem(widths, rows):
    """Data and weights at the start: dict of arrays."""
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (rows, widths[0]))
    arrays = {"x": x, "y": (x**2).sum(axis=1, keepdims=True)}
    for i, (fan_in, fan_out) in enumerate(
        zip(widths[:-1], widths[1:], strict=True)
    ):
        reach = np.sqrt(6 / (fan_in + fan_out))
        kernel = random.uniform(-reach, reach, (fan_in, fan_out))
        arrays[f"w{2 * i:02}"] = kernel
        arrays[f"w{2 * i + 1:02}"] = np.zeros(fan_out)
    return {name: array.astype("float32") for name, array in arrays.items()}


# Python 3.9, too, runs the code from here to `serve`.


def add_layers(model, keras, weights):
    kernels = weights[::2]
    for i, kernel in enumerate(kernels):
        last = i == len(kernels) - 1
        activation = None if last else "tanh"
        model.add(keras.layers.Dense(kernel.shape[1], activation=activation))
    model.build((None, len(kernels[0])))


def bare(call, theta, evaluations):
    """Milliseconds of a call, at another point each time."""
    points = theta * (1 + 1e-6 * np.arange(1, evaluations + 1)[:, None])
    begin = time.perf_counter()
    for point in points:
        call(point)
    return 1e3 * (time.perf_counter() - begin) / evaluations


def theirs(x, y, weights, evaluations):
    """A function that fits once, and returns findings by a solver's name."""
    from tensorflow import keras

    from kormos.models import BatchOptimizedSequentialModel

    model = BatchOptimizedSequentialModel()
    add_layers(model, keras, weights)
    loss = keras.losses.MeanSquaredError()
    model.compile(optimizer="L-BFGS-B", loss=loss)
    optimizer = model.optimizer
    options = {"maxfun": evaluations, "ftol": 0.0, "gtol": 0.0, "maxcor": 10}

    def once():
        model.set_weights(weights)
        before, reached = optimizer.fg_evals, []

        def note(epoch, logs):
            if logs["loss"] <= TARGET and not reached:
                reached.append(time.perf_counter() - begin)

        begin = time.perf_counter()
        model.fit_batch(
            x,
            y,
            batch_size=len(x),
            epochs=evaluations,
            options=options,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=note)],
        )
        seconds = time.perf_counter() - begin
        call = optimizer.func_and_grad
        found = {
            "ms": 1e3 * seconds / (optimizer.fg_evals - before),
            "bare": bare(call, optimizer.get_weights(), evaluations // 5),
            "reach": reached[0] if reached else float("nan"),
        }
        return {PREDECESSOR: found}

    return once


def ours(x, y, weights, evaluations):
    """The same for this library."""
    import keras

    import kormos

    model = keras.Sequential()
    add_layers(model, keras, weights)
    model.compile(loss="mse")
    objective = kormos.Objective(model, x, y)
    # Tolerances of zero: every fit makes all of its evaluations.
    scipy = kormos.optimizers.ScipyBatchOptimizer(
        options={"ftol": 0.0, "gtol": 0.0, "maxcor": 10}
    )
    lbfgs = kormos.optimizers.LBFGS(ftol=0.0, gtol=0.0)

    def fit(optimizer, steps, **limits):
        model.set_weights(weights)
        begin = time.perf_counter()
        history = kormos.fit(
            model,
            x,
            y,
            optimizer=optimizer,
            epochs=evaluations,
            steps_per_epoch=steps,
            max_evals=evaluations,
            verbose=0,
            **limits,
        )
        return time.perf_counter() - begin, history.result

    def once():
        found = {}
        call = objective.value_and_grad
        theta = objective.initial_position()
        alone = bare(call, theta, evaluations)
        for name, (optimizer, steps) in {
            "kormos, l-bfgs-b": (scipy, 1),
            "kormos, lbfgs": (lbfgs, 50),
        }.items():
            seconds, result = fit(optimizer, steps)
            reach, end = fit(optimizer, steps, target_loss=TARGET)
            found[name] = {
                "ms": 1e3 * seconds / result.evaluations,
                "bare": alone,
                "reach": reach if end.loss <= TARGET else float("nan"),
            }
        return found

    return once


def serve(side, path, evaluations):
    """A child process: fits once for every line that it reads."""
    arrays = np.load(path)
    weights = [arrays[k] for k in sorted(arrays) if k.startswith("w")]
    prepare = {"theirs": theirs, "ours": ours}[side]
    once = prepare(arrays["x"], arrays["y"], weights, int(evaluations))
    once()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(once()), flush=True)


class Child:
    """A process that fits when it is asked to.

    Args:
        python: the interpreter.
        side: `"theirs"` or `"ours"`.
        arguments: the other arguments of `serve`.
    """

    def __init__(self, python, side, *arguments):
        # TensorFlow's threads depend on neither OpenMP nor XLA's flags.
        threads = {f"TF_NUM_{k}OP_THREADS": "1" for k in ("INTER", "INTRA")}
        environment = {**os.environ, **threads}
        if side == "theirs":
            # It would import this library in place of the predecessor.
            environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [python, __file__, side, *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def __call__(self):
        self._process.stdin.write("fit\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A child ended: {self._process.args}")
        return line


def interpreter():
    """A Python 3.9 that works, or `None`."""
    versions = pathlib.Path.home() / ".pyenv" / "versions"
    found = sorted(versions.glob("3.9*/bin/python3.9"))
    for path in (shutil.which("python3.9"), *map(str, found)):
        # The path may have a shim without an interpreter.
        if path and succeeds(path, "-c", "import venv"):
            return path
    return None


def succeeds(*command):
    return subprocess.run(command, capture_output=True).returncode == 0


def predecessor():
    """The interpreter of the predecessor's environment, or `None`."""
    python = str(ENVIRONMENT / "bin" / "python")
    pip = python, "-m", "pip"
    if ENVIRONMENT.exists() and succeeds(*pip, "show", "kormos", "tensorflow"):
        return python
    base = interpreter()
    if base is None:
        print("Skipped: there is no python3.9 here.")
        return None
    print(f"Making {ENVIRONMENT.name} ...", flush=True)
    succeeds(base, "-m", "venv", str(ENVIRONMENT))
    if not succeeds(*pip, "install", *PACKAGES):
        print(f"Skipped: {', '.join(PACKAGES)} could not be installed.")
        return None
    return python


def measure(python, widths, rows, evaluations, rounds):
    """A dict from a solver's name to its findings in each round."""
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "problem.npz"
        np.savez(path, **problem(widths, rows))
        children = [
            Child(interpreter, side, path, evaluations)
            for interpreter, side in (
                (python, "theirs"),
                (sys.executable, "ours"),
            )
        ]
        for _ in range(rounds):
            for child in children:
                for name, found in child().items():
                    runs.setdefault(name, []).append(found)
        for child in children:
            child.close()
    return runs


def medians(found):
    return {
        key: statistics.median(run[key] for run in found) for key in found[0]
    }


def main():
    args = recording.parser(__doc__).parse_args()
    python = predecessor()
    if python is None:
        return
    record = recording.Record("predecessor", __doc__, args)
    rows = []
    for name, size in list(NETS.items())[: 1 if args.quick else None]:
        runs = measure(python, *size, 2 if args.quick else 3)
        slow = medians(runs[PREDECESSOR])["ms"]
        for solver, found in runs.items():
            m = medians(found)
            spread = recording.spread([run["ms"] for run in found])
            cells = m["ms"], spread, m["bare"], m["reach"], slow / m["ms"]
            rows.append([name, solver, *cells])
    columns = [
        "network",
        "library, solver",
        "evaluation in a fit, ms",
        "spread",
        "bare call, ms",
        f"seconds to loss {TARGET:.0e}",
        "ratio",
    ]
    record.table("An evaluation, and a fit", columns, rows)


if __name__ == "__main__":
    if sys.argv[1:2] in (["theirs"], ["ours"]):
        serve(*sys.argv[1:])
    else:
        main()
