"""How seconds and memory grow with rows, parameters and chunks.

`kormos.fit` fits a network 8-h-1 in float32, each time in a new process on one
thread. Seconds are the median over the iterations after the second, so
compiling is not included. Memory is the peak of the process minus its memory
just before the fit, which includes the data.

In the tables by rows, the data are either arrays in memory, or a stream: a
`keras.utils.PyDataset` that makes each batch of 10,000 rows when it is read.
With arrays, the memory of a fit includes the backend's own copy of them, if it
makes one. With a stream, it must not grow with the rows. In the other tables,
the data are arrays in chunks of 10,000 rows, unless the table says otherwise.

Slopes are least-squares fits of the logarithms over the larger sizes, where the
arithmetic takes longer than the constant cost of a call. A slope of 1 is
linear.

    KERAS_BACKEND=jax python benchmarks/scaling.py
"""

import one_thread  # noqa: F401

# isort: split
import pathlib
import resource
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import keras
import numpy as np
import recording

import kormos

INPUTS = 8
CHUNK = 10_000
PAIRS = 10


def make_rows(count, seed=0):
    """Inputs and targets."""
    rng = np.random.default_rng(seed)
    x = rng.random((count, INPUTS), dtype="float32")
    return x, np.sin(3 * x[:, :1]) * x[:, 1:2]


class Batches(keras.utils.PyDataset):
    """Rows that are made when they are read."""

    def __init__(self, rows, batch_size):
        super().__init__()
        self._size = min(rows, batch_size)
        self._count = rows // self._size

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return make_rows(self._size, index)


def fit(method, rows, hidden, batch_size, iterations, stream=False):
    """Seconds, evaluations and memory of a fit, in this process."""
    data = make_rows(0 if stream else rows)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(hidden, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((INPUTS,)), *layers])
    model.compile(loss="mse")
    optimizer = method
    if method == "lbfgs":
        optimizer = kormos.optimizers.LBFGS(memory=PAIRS, gtol=0, ftol=0)
    before = pathlib.Path("/proc/self/statm").read_text().split()[1]
    before = int(before) * resource.getpagesize()
    history = kormos.fit(
        model,
        *([Batches(rows, batch_size)] if stream else data),
        stream=stream,
        optimizer=optimizer,
        batch_size=batch_size,
        epochs=iterations,
        verbose=0,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": float(np.median(np.diff(history.seconds[1:]))),
        "evaluations": history.result.evaluations / history.result.iterations,
        "data": sum(a.nbytes for a in data) / 1e6,
        "memory": (peak - before) / 1e6,
        "parameters": model.count_params(),
    }


def measure(**arguments):
    """The result of `fit` in a new process, because a peak never falls."""
    # A fork does not import again, which takes longer than most of the fits.
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return pool.submit(fit, **arguments).result()


def slope(x, y, least):
    """The slope of the logarithms where x is `least` or more."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a >= least]
    if len(pairs) < 2:
        return "–"
    return f"{np.polyfit(*np.log(pairs).T, 1)[0]:.2f}"


def rows(record, quick):
    sizes = [10**4, 10**5] if quick else [10**k for k in range(3, 8)]
    series, cells, notes = {}, [], []
    for name, stream in ("in memory", False), ("streamed", True):
        found = [
            measure(
                method="lbfgs",
                rows=size,
                hidden=20,
                batch_size=CHUNK,
                iterations=5 if size > 10**6 else 12,
                stream=stream,
            )
            for size in sizes
        ]
        seconds = [f["seconds"] for f in found]
        series[name] = seconds, [f["memory"] for f in found]
        notes.append(f"{name} {slope(sizes, seconds, 10**4)}")
        cells += [
            [
                name,
                size,
                f["data"],
                1e3 * f["seconds"],
                f["evaluations"],
                f["memory"],
                f["memory"] - f["data"],
            ]
            for size, f in zip(sizes, found, strict=True)
        ]
    record.table(
        f"L-BFGS, network {INPUTS}-20-1, by rows",
        [
            "data",
            "rows",
            "MB of data",
            "ms an iteration",
            "evaluations an iteration",
            "memory, MB",
            "less a copy of the data, MB",
        ],
        cells,
        f"Slopes of seconds from 10,000 rows on: {', '.join(notes)}.",
    )
    for i, (title, label) in enumerate(
        (
            ("L-BFGS by rows", "seconds an iteration"),
            ("Memory of L-BFGS by rows", "MB"),
        )
    ):
        record.curves(
            title,
            "rows",
            label,
            {name: (sizes, values[i]) for name, values in series.items()},
        )


def parameters(record, quick):
    plans = {
        "lbfgs": (
            [10**5] if quick else [10**k for k in range(2, 8)],
            32,
        ),
        "lm": ([100, 400] if quick else [100, 300, 1_000, 2_000, 5_000], 2_000),
    }
    series, notes, cells = {}, [], []
    for method, (sizes, count) in plans.items():
        found = [
            measure(
                method=method,
                rows=count,
                hidden=size // (INPUTS + 2),
                batch_size=count,
                iterations=5 if method == "lm" or size > 10**6 else 12,
            )
            for size in sizes
        ]
        seconds = [f["seconds"] for f in found]
        series[method] = sizes, seconds
        least = sizes[-1] // 100 if method == "lbfgs" else sizes[-1] // 5
        notes.append(
            f"{method} from {least:,} on: {slope(sizes, seconds, least)}"
        )
        cells += [
            [
                method,
                count,
                f["parameters"],
                1e3 * f["seconds"],
                f["evaluations"],
                f["memory"],
            ]
            for f in found
        ]
    record.table(
        f"By parameters, network {INPUTS}-h-1",
        [
            "method",
            "rows",
            "parameters",
            "ms an iteration",
            "evaluations an iteration",
            "memory, MB",
        ],
        cells,
        f"lbfgs keeps {PAIRS} pairs. Slopes of seconds: {'; '.join(notes)}.",
    )
    record.curves("By parameters", "parameters", "seconds an iteration", series)


def chunks(record, quick):
    count = 20_000 if quick else 200_000
    sizes = [20] if quick else [1, 4, 20, 100]
    found = [
        measure(
            method="lbfgs",
            rows=count,
            hidden=100,
            batch_size=count // size,
            iterations=8,
        )
        for size in sizes
    ]
    record.table(
        f"L-BFGS, {count:,} rows, network {INPUTS}-100-1, by chunks",
        ["chunks", "ms an iteration", "memory, MB"],
        [
            [n, 1e3 * f["seconds"], f["memory"]]
            for n, f in zip(sizes, found, strict=True)
        ],
    )
    for key, label in ("seconds", "seconds an iteration"), ("memory", "MB"):
        record.curves(
            f"L-BFGS by chunks, {key}",
            "chunks",
            label,
            {"lbfgs": (sizes, [f[key] for f in found])},
        )


def main():
    args = recording.parser(__doc__).parse_args()
    warnings.simplefilter("ignore", kormos.ConvergenceWarning)
    record = recording.Record("scaling", __doc__, args)
    rows(record, args.quick)
    parameters(record, args.quick)
    chunks(record, args.quick)


if __name__ == "__main__":
    main()
