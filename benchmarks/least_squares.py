"""Levenberg-Marquardt: what it reaches, how fast, and how it compares.

`"lm"` and the methods of other libraries start from the same weights and run in
turn, on one thread and in float64 unless a title says otherwise. The tables
give medians over the seeds. Milliseconds are those of an iteration without
compiling, and the spread is their range divided by their median. Compiling is
the additional time of the first run until the end of its first iteration.
Iterations of kormos and of SciPy are accepted steps. Those of optimistix and
jaxopt include rejected steps. A training step of tf-levenberg-marquardt (in its
own process) and of torch-levenberg-marquardt tries up to ten steps. Methods
with slow iterations make fewer of them, and have a dash. SciPy, optimistix and
jaxopt need KERAS_BACKEND=jax.

    KERAS_BACKEND=jax python benchmarks/least_squares.py --problem nist sinc

`nist`: NIST's regressions from both starts, the harder one first: the number of
correct digits of the worst parameter, of eleven certified digits.

`sinc`: sin(10 x) / (10 x) on 20,000 points, network 1-20-1: loss.

`poisson`: Poisson's equation on a square, network 2-32-1 (Mueller and Zeinhofer
2023): relative L2 error.

`oscillator`: u'' + 0.4 u' + 4.04 u = 0, u(0) = 1, u'(0) = 0 for t up to 5, by
u = 1 + t^2 N(t) with a network 1-20-20-1 on 500 points: loss, and relative L2
error.

`digits`: every fourth of scikit-learn's, network 64-20-10, cross-entropy, in
float32: training loss by `"lm"` and by `"lbfgs"`.

`memory`: the memory that a fit of 1,000,000 rows in 100 chunks adds to a
process. It runs only if it is named.
"""

import one_thread  # noqa: F401

# isort: split
import pathlib
import resource
import subprocess
import sys
import time
import warnings

import keras
import levenberg_marquardt_peers as peers
import numpy as np
import recording
from keras import ops

import kormos
from kormos.optimizers import LevenbergMarquardt

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "helpers"))
import nist as strd

VARIANTS = {
    "lm": {},
    "lm, acceleration=False": {"acceleration": False},
    'lm, preset="matlab"': {"preset": "matlab"},
}
# Their iterations take too long to go beyond the first mark.
SLOW = {"jaxopt LM", "SciPy lm", "tf-levenberg-marquardt"}


def variants(args):
    return {"lm": {}} if args.quick else VARIANTS


def marks_of(name, marks):
    return marks[:1] if name in SLOW else marks


def network(inputs, *widths, last=None):
    layers = [keras.layers.Dense(w, activation="tanh") for w in widths[:-1]]
    layers.append(keras.layers.Dense(widths[-1], activation=last))
    return keras.Sequential([keras.Input((inputs,)), *layers])


def flat(model):
    """The weights of a model in a vector."""
    return np.concatenate([w.reshape(-1) for w in model.get_weights()])


def split(model, theta):
    """A vector as the weights of a model."""
    shapes = [v.shape for v in model.trainable_variables]
    parts = ops.split(theta, np.cumsum([np.prod(s) for s in shapes])[:-1])
    return [ops.reshape(p, s) for p, s in zip(parts, shapes, strict=True)]


def applied(model, theta):
    """The model as a function, with other weights."""
    values = split(model, theta)
    return lambda x: model.stateless_call(values, [], x)[0]


def least_squares_run(model, residuals, data, marks, options, **settings):
    """A `peers.Run` of kormos."""
    points = {}

    def note(iteration, logs):
        points[iteration] = flat(model)

    result = kormos.least_squares(
        residuals,
        model.trainable_variables,
        LevenbergMarquardt(**options),
        data=data,
        max_iterations=marks[-1],
        callbacks=[note],
        **settings,
    )
    points = [points[min(m, result.iterations)] for m in marks]
    return peers.run_of(points, result.history["seconds"])


class Comparison:
    """Runs of solvers from several starts, and the table of them.

    Args:
        marks: iterations after which values are reported.
        values: dict from a value's name to a function of a run's point.
    """

    def __init__(self, marks, values):
        self._marks = marks
        self._values = values
        self._runs = {}

    def add(self, name, run):
        missing = [float("nan")] * (len(self._marks) - len(run.points))
        judged = []
        for judge in self._values.values():
            judged += [*map(judge, run.points), *missing]
        row = *judged, 1e3 * run.seconds, run.compiling
        self._runs.setdefault(name, []).append(row)

    def record(self, record, title, note=""):
        names = [f"{v} at {m}" for v in self._values for m in self._marks]
        rows = []
        for name, runs in self._runs.items():
            row = np.median(runs, axis=0)
            # Later runs use the code that the first one compiled.
            row[-1] = max(run[-1] for run in runs)
            row = np.insert(row, -1, recording.spread([r[-2] for r in runs]))
            rows.append([name, *map(float, row)])
        last = "ms an iteration", "spread", "compiling, s"
        columns = ["method", *names, *last]
        record.table(title, columns, rows, note)


def nist_ours(problem):
    def solve(start):
        b = keras.Variable(np.array(start), dtype="float64")
        kormos.least_squares(lambda: problem.residuals(b), [b])
        return b.value

    return solve


def nist(record, args):
    rivals = peers.nist_peers()
    names = ["lm", *rivals]
    rows, seconds = [], dict.fromkeys(names, 0.0)
    with kormos.precision("float64"):
        for problem in strd.problems()[: 1 if args.quick else None]:
            solvers = [nist_ours(problem)]
            solvers += [make(problem.residuals) for make in rivals.values()]
            for number, start in enumerate(problem.starts, 1):
                row = [f"{problem.name}, {number}"]
                for name, solve in zip(names, solvers, strict=True):
                    begin = time.perf_counter()
                    digits = problem.digits(solve(np.array(start)))
                    seconds[name] += time.perf_counter() - begin
                    row.append(float(np.nan_to_num(max(digits, 0.0))))
                rows.append(row)
    shown = [[row[0], *(f"{d:.1f}" for d in row[1:])] for row in rows]
    record.table("NIST: digits", ["problem, start", *names], shown)
    digits = np.array([row[1:] for row in rows])
    totals = [
        [name, *(int((own >= d).sum()) for d in (4, 6, 9)), seconds[name]]
        for name, own in zip(names, digits.T, strict=True)
    ]
    record.table(
        f"NIST: starts solved, of {len(rows)}",
        ["method", "4 digits", "6 digits", "9 digits", "seconds"],
        totals,
        "Seconds include compiling.",
    )


def sinc(record, args):
    marks, rows = ([5, 20], 2_000) if args.quick else ([10, 50], 20_000)
    for dtype in ("float64", "float32")[: 1 if args.quick else 2]:
        with kormos.precision(dtype):
            x = np.linspace(-1, 1, rows)[:, None].astype(dtype)
            y = np.sinc(10 * x / np.pi).astype(dtype)
            compare_sinc(record, args, x, y, marks)


def compare_sinc(record, args, x, y, marks):
    model = network(1, 20, 1)
    model.compile(loss="mse")

    def residuals(theta):
        return ops.reshape(applied(model, theta)(x) - y, (-1,))

    def loss(point):
        return point if np.ndim(point) == 0 else mean_square(residuals(point))

    is_float64 = x.dtype == "float64"
    # With this many rows, trf's decomposition of the Jacobian takes too long.
    names = "optimistix LM", "jaxopt LM", "SciPy lm"
    solvers = prepared(names if is_float64 else (), residuals, marks)
    comparison = Comparison(marks, {"loss": loss})
    for seed in range(args.seeds):
        start = fresh(model, seed)
        for name, options in (
            variants(args).items() if is_float64 else [("lm", {})]
        ):
            model.set_weights(start)
            lm = LevenbergMarquardt(epochs=marks[-1], **options)
            history = kormos.fit(model, x, y, optimizer=lm, verbose=0)
            losses = history.history["loss"]
            losses = [losses[min(m, len(losses)) - 1] for m in marks]
            comparison.add(name, peers.run_of(losses, history.seconds))
        model.set_weights(start)
        for name, run in solvers.items():
            comparison.add(name, run(flat(model)))
        for name, run in peers.network_peers().items() if is_float64 else ():
            comparison.add(name, run(start, x, y, marks_of(name, marks)))
    comparison.record(record, f"Sinc, {len(x):,} rows, {x.dtype}")


def prepared(names, residuals, marks):
    """The installed peers of these names, as functions of a start."""
    return {
        name: prepare(residuals, marks_of(name, marks))
        for name, prepare in peers.available(names).items()
    }


def fresh(model, seed):
    """Weights that Keras' initializers draw."""
    keras.utils.set_random_seed(seed)
    drawn = keras.models.clone_model(model)
    return drawn.get_weights()


def mean_square(residuals):
    return float(ops.mean(ops.square(residuals)))


def grid(*sides):
    return np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)


def relative(values, exact):
    values = ops.convert_to_numpy(values)[:, 0]
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


def derivatives(u, points, axis):
    """Values, first and second derivatives of u along an axis."""
    unit = np.eye(points.shape[1])[axis]
    unit = ops.convert_to_tensor(unit, dtype=points.dtype)
    unit = ops.broadcast_to(unit, ops.shape(points))

    def slope(points):
        return ops.jvp(u, (points,), (unit,))

    (value, first), (_, second) = ops.jvp(slope, (points,), (unit,))
    return value, first, second


def poisson(record, args):
    marks = [5, 20] if args.quick else [100, 200]
    t, side = np.linspace(0, 1, 30), np.arange(1, 29) / 29
    edges = [grid(t, [0]), grid(t, [1]), grid([0], t), grid([1], t)]
    data = {"pde": grid(side, side), "bc": np.concatenate(edges)}
    test = grid(*[np.linspace(0, 1, 101)] * 2)
    exact = np.sin(np.pi * test).prod(axis=1)
    with kormos.precision("float64"):
        model = network(2, 32, 1)

        def residuals(data):
            laplacian = sum(
                derivatives(model, data["pde"], i)[2] for i in (0, 1)
            )
            source = ops.prod(ops.sin(np.pi * data["pde"]), 1, keepdims=True)
            pde = laplacian + 2 * np.pi**2 * source
            return {"pde": pde, "bc": model(data["bc"])}

        comparison = Comparison(
            marks,
            {
                "error": lambda point: relative(
                    applied(model, point)(test), exact
                )
            },
        )
        for seed in range(args.seeds):
            rng = np.random.default_rng(seed)
            shapes = [w.shape for w in model.get_weights()]
            start = [0.1 * rng.standard_normal(s) for s in shapes]
            for name, options in variants(args).items():
                model.set_weights(start)
                weights = {"loss_weights": {"bc": 4.0}}
                run = least_squares_run(
                    model, residuals, data, marks, options, **weights
                )
                comparison.add(name, run)
    comparison.record(record, "Poisson's equation")


def oscillator(record, args):
    marks = [2, 4] if args.quick else [10, 30]
    count, width = (200, 8) if args.quick else (500, 20)
    t = np.linspace(0, 5, count)[:, None]
    test = np.linspace(0, 5, 1_001)[:, None]
    phase = 2 * test[:, 0]
    exact = np.exp(-test[:, 0] / 5) * (np.cos(phase) + 0.1 * np.sin(phase))

    def equation(net, t):
        value, first, second = derivatives(
            lambda t: 1 + ops.square(t) * net(t), t, 0
        )
        return second + 0.4 * first + 4.04 * value

    with kormos.precision("float64"):
        model, points = network(1, width, width, 1), ops.convert_to_tensor(t)

        def residuals(theta):
            return ops.reshape(equation(applied(model, theta), points), (-1,))

        def error(theta):
            values = 1 + test**2 * ops.convert_to_numpy(
                applied(model, theta)(test)
            )
            return relative(values, exact)

        comparison = Comparison(
            marks,
            {"loss": lambda p: mean_square(residuals(p)), "error": error},
        )
        names = "optimistix LM", "jaxopt LM", "SciPy lm"
        solvers = prepared(names, residuals, marks)
        for seed in range(args.seeds):
            start = fresh(model, seed)
            for name, options in variants(args).items():
                model.set_weights(start)
                run = least_squares_run(
                    model, lambda t: equation(model, t), t, marks, options
                )
                comparison.add(name, run)
            model.set_weights(start)
            for name, run in solvers.items():
                comparison.add(name, run(flat(model)))
    comparison.record(record, "A damped oscillator")


def digits(record, args):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    thin = 9 if args.quick else 4
    x, y = (x[::thin] / 16).astype("float32"), y[::thin]
    methods = {"lm": {"epochs": 3}, "lbfgs": {"epochs": 30}}
    if not args.quick:
        methods = {"lm": {"epochs": 10}, "lbfgs": {"epochs": 200}}
    rows = []
    model = network(64, 5 if args.quick else 20, 10, last="softmax")
    model.compile(loss="sparse_categorical_crossentropy")
    start = fresh(model, 0)
    for name, limits in methods.items():
        model.set_weights(start)
        result = kormos.fit(
            model, x, y, optimizer=name, verbose=0, **limits
        ).result
        counts = result.iterations, result.evaluations
        rows.append([name, result.loss, *counts, result.time])
    columns = ["method", "loss", "iterations", "evaluations", "seconds"]
    record.table("Digits", columns, rows, "Seconds include compiling.")


def memory(record, args):
    rows = 10_000 if args.quick else 1_000_000
    # The peak of a process is that of everything that it ran.
    found = subprocess.run(
        [sys.executable, __file__, "--peak", str(rows)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    values = [float(v) for v in found.stdout.split()]
    columns = ["rows", "data, MB", "peak, MB", "before, MB", "seconds"]
    shown = [rows, *(f"{v:,.0f}" for v in values)]
    record.table("Memory of 100 chunks", columns, [shown])


def peak(rows):
    """Prints megabytes of the data, at the peak and before, and seconds."""
    x = np.random.default_rng(0).random((rows, 8), dtype="float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    model = network(8, 20, 15, 1)
    model.compile(loss="mse")
    limits = {"optimizer": "lm", "epochs": 3, "verbose": 0}
    before = pathlib.Path("/proc/self/statm").read_text().split()[1]
    before = int(before) * resource.getpagesize() / 1e6
    result = kormos.fit(model, x, y, batch_size=rows // 100, **limits).result
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3
    print((x.nbytes + y.nbytes) / 1e6, most, before, result.time)


PROBLEMS = {
    "nist": nist,
    "sinc": sinc,
    "poisson": poisson,
    "oscillator": oscillator,
    "digits": digits,
    "memory": memory,
}


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS)
    parser.add_argument("--seeds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--peak", type=int, metavar="ROWS")
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.quick else 3)
    warnings.simplefilter("ignore", kormos.ConvergenceWarning)
    if args.peak:
        peak(args.peak)
        return
    record = recording.Record("least-squares", __doc__, args)
    for name in args.problem or [n for n in PROBLEMS if n != "memory"]:
        PROBLEMS[name](record, args)


if __name__ == "__main__":
    main()
