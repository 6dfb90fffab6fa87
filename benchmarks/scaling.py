"""How seconds and memory grow with rows, parameters and chunks.

Fits of a network 8-h-1 in float32 by `kormos.fit`, each in a process of its
own on one thread. Seconds are the median of the iterations after the second,
so without compiling. Memory is the peak of the process less what it held just
before the fit, the data among that.

kormos does not stream: it reads any data set once, keeps it in memory, and
evaluates it in chunks of `batch_size` rows. So the data here are arrays in
memory, in chunks of 10,000 rows unless the table says otherwise, and what a
fit adds to them includes the backend's own copy of the data, where it makes
one. The memory beside that copy is what must not grow with the rows.

Slopes are least-squares fits of the logarithms over the larger sizes, where
arithmetic takes longer than what a call costs at any size: 1 is linear.

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


def fit(method, rows, hidden, batch_size, iterations):
    """Seconds, evaluations and memory of a fit, in this process."""
    rng = np.random.default_rng(0)
    x = rng.random((rows, INPUTS), dtype="float32")
    y = np.sin(3 * x[:, :1]) * x[:, 1:2]
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
        x,
        y,
        optimizer=optimizer,
        batch_size=batch_size,
        epochs=iterations,
        verbose=0,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": float(np.median(np.diff(history.seconds[1:]))),
        "evaluations": history.result.evaluations / history.result.iterations,
        "data": (x.nbytes + y.nbytes) / 1e6,
        "memory": (peak - before) / 1e6,
        "parameters": model.count_params(),
    }


def measure(**arguments):
    """What `fit` returns, of a process of its own: a peak never falls."""
    # Importing takes longer than most of the fits; a fork has it behind it.
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
    found = [
        measure(
            method="lbfgs",
            rows=size,
            hidden=20,
            batch_size=CHUNK,
            iterations=5 if size > 10**6 else 12,
        )
        for size in sizes
    ]
    seconds = [f["seconds"] for f in found]
    memory = [f["memory"] for f in found]
    beside = [f["memory"] - f["data"] for f in found]
    record.table(
        f"L-BFGS, network {INPUTS}-20-1, by rows",
        [
            "rows",
            "data, MB",
            "ms an iteration",
            "evaluations an iteration",
            "memory, MB",
            "less a copy of the data, MB",
        ],
        [
            [n, f["data"], 1e3 * s, f["evaluations"], m, b]
            for n, f, s, m, b in zip(
                sizes, found, seconds, memory, beside, strict=True
            )
        ],
        "Slope of seconds from 10,000 rows on: "
        f"{slope(sizes, seconds, 10**4)}.",
    )
    record.curves(
        "L-BFGS by rows",
        "rows",
        "seconds an iteration",
        {"lbfgs": (sizes, seconds)},
    )
    record.curves(
        "Memory of L-BFGS by rows",
        "rows",
        "MB beside the data",
        {"lbfgs": (sizes, memory), "data": (sizes, [f["data"] for f in found])},
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
