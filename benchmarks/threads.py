"""How much time a second core saves, for several methods and sizes.

Each case is fitted in new processes, which may use either one core or all cores
of the machine, in turn. The time of a process is the median over its iterations
after the third, so that compiling is not included. The table has the shortest
time of three processes. The last column is the time on one core divided by the
time on all cores.

    KERAS_BACKEND=jax python benchmarks/threads.py
"""

import json
import os
import subprocess
import sys
from typing import NamedTuple

CORES = sorted(os.sched_getaffinity(0))
ROUNDS = 3


class Case(NamedTuple):
    """A network that a method fits.

    Attributes:
        method: the method.
        rows: the rows of data.
        inputs: the inputs of the network.
        hidden: the widths of its hidden layers.
        dtype: the precision.
        iterations: the iterations that are timed.
    """

    method: str
    rows: int
    inputs: int
    hidden: tuple[int, ...]
    dtype: str
    iterations: int = 20

    @property
    def network(self):
        return "-".join(map(str, (self.inputs, *self.hidden, 1)))


CASES = (
    Case("lbfgs", 1_000, 2, (20, 20), "float32"),
    Case("lbfgs", 10_000, 2, (64, 64), "float32"),
    Case("lbfgs", 100_000, 2, (128, 128, 128), "float32"),
    Case("ssbroyden", 1_000, 2, (48, 48), "float64"),
    Case("lm", 20_000, 1, (20,), "float64"),
    Case("lm", 2_000, 2, (32, 32), "float64"),
    Case("newton", 10_000, 2, (64, 64), "float32"),
)


def fit(case):
    """The median milliseconds of an iteration, in this process."""
    import keras
    import numpy as np

    import kormos

    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (case.rows, case.inputs)).astype(case.dtype)
    y = np.sin(9 * x[:, :1]) * np.cos(5 * x[:, -1:])
    keras.utils.set_random_seed(0)
    with kormos.precision(case.dtype):
        layers = [keras.layers.Dense(h, "tanh") for h in case.hidden]
        model = keras.Sequential(
            [keras.Input((case.inputs,)), *layers, keras.layers.Dense(1)]
        )
        model.compile(loss="mse")
        history = kormos.fit(
            model,
            x,
            y,
            optimizer=case.method,
            batch_size=case.rows,
            epochs=case.iterations + 3,
            # Without a callback, one call makes several iterations.
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=_look)],
            verbose=0,
        )
    return 1e3 * float(np.median(np.diff(history.seconds[3:])))


def _look(epoch, logs):
    """Looks at the weights after every iteration."""


def measure(number, cores):
    """The result of `fit` in a new process that may use these cores."""
    count = str(len(cores))
    environment = {
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        **dict.fromkeys(
            (
                "OMP_NUM_THREADS",
                "OPENBLAS_NUM_THREADS",
                "TF_NUM_INTRAOP_THREADS",
                "TF_NUM_INTEROP_THREADS",
            ),
            count,
        ),
    }
    output = subprocess.run(
        [sys.executable, __file__, "fit", str(number)],
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        timeout=600,
    ).stdout
    return json.loads(output.splitlines()[-1])


def main():
    import recording

    args = recording.parser(__doc__).parse_args()
    record = recording.Record("threads", __doc__, args)
    rows = []
    for number, case in enumerate(CASES[: 2 if args.quick else None]):
        times = {1: [], len(CORES): []}
        for _ in range(1 if args.quick else ROUNDS):
            for count, found in times.items():
                found.append(measure(number, CORES[:count]))
        one, all_of_them = (min(found) for found in times.values())
        name = f"`{case.method}`, {case.network}, {case.dtype}"
        rows.append([name, case.rows, one, all_of_them, one / all_of_them])
        print(*rows[-1], file=sys.stderr, flush=True)
    record.table(
        "Milliseconds of an iteration",
        ["fit", "rows", "one core", f"{len(CORES)} cores", "ratio"],
        rows,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        print(json.dumps(fit(CASES[int(sys.argv[2])])))
    else:
        main()
