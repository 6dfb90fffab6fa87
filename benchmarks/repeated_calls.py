"""What a second call of `minimize` and `least_squares` costs.

Rosenbrock's function is minimized by `"lbfgs"` and by SciPy's L-BFGS-B, and a
decay of two parameters is fitted by `"lm"`: each a hundred times from the same
start, in float64, with the same function. The table has the milliseconds of the
first call, which compiles; the median of later calls; the time until the first
iterate of a later call; and the megabytes by which the process has grown from
the third call to the last.
"""

import one_thread  # noqa: F401

# isort: split
import gc
import statistics
import time

import keras
import numpy as np
import recording
from keras import ops

import kormos

CALLS = 100


def problems():
    """Names of rows, with functions that start a fit again."""
    v = keras.Variable(np.zeros(2), dtype="float64")
    x = np.linspace(0.0, 1.0, 50)
    data = {"x": x, "y": 2 * np.exp(-3 * x)}

    def rosenbrock():
        return 100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2

    def decay(data):
        return v[0] * ops.exp(-v[1] * data["x"]) - data["y"]

    def minimize(method, on_iterate):
        v.assign(np.array([-1.2, 1.0]))
        return kormos.minimize(rosenbrock, [v], method, callback=on_iterate)

    def least_squares(method, on_iterate):
        v.assign(np.array([1.0, 1.0]))
        return kormos.least_squares(
            decay, [v], method, data=data, callbacks=[on_iterate]
        )

    yield "Rosenbrock, lbfgs", minimize, "lbfgs"
    yield "Rosenbrock, l-bfgs-b", minimize, "l-bfgs-b"
    yield "decay, lm", least_squares, "lm"


def megabytes():
    """The memory of the process."""
    gc.collect()
    with open("/proc/self/status") as status:
        (line,) = (row for row in status if row.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def row(name, call, method, calls):
    seconds, firsts, memory, results = [], [], [], []
    for _ in range(calls):
        iterates = []

        def on_iterate(iteration, logs, iterates=iterates):
            iterates.append(time.perf_counter())

        begin = time.perf_counter()
        results.append(call(method, on_iterate))
        seconds.append(time.perf_counter() - begin)
        firsts.append(iterates[0] - begin)
        memory.append(megabytes())
    assert len({result.loss for result in results}) == 1
    return [
        name,
        1e3 * seconds[0],
        1e3 * statistics.median(seconds[1:]),
        1e3 * statistics.median(firsts[1:]),
        memory[-1] - memory[2],
        results[0].loss,
    ]


def main():
    args = recording.parser(__doc__).parse_args()
    record = recording.Record("repeated_calls", __doc__, args)
    kormos.enable_float64()
    calls = 10 if args.quick else CALLS
    columns = [
        "problem",
        "ms of the first call",
        "ms of a later call",
        "ms to its first iterate",
        "MB more",
        "loss",
    ]
    rows = [row(*problem, calls) for problem in problems()]
    record.table(f"On {keras.backend.backend()}", columns, rows)


if __name__ == "__main__":
    main()
