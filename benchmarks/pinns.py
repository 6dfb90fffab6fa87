"""A physics-informed network: Burgers' equation, against the exact solution.

u_t + u u_x = nu u_xx on -1 < x < 1, 0 < t < 1, u(0, x) = -sin(pi x). A network
N of three layers of 20 units in (t, cos pi x, sin pi x) with tanh gives u =
-sin pi x + t N. The conditions hold exactly, and the loss is the mean squared
residual on 6,144 points, drawn from 50,000 by their residuals (Wu et al. 2023).
Every method starts from the weights after 2,500 steps of Adam. New points are
drawn every 10 iterations for LM, every 250 for Adam, every 200 for quasi-Newton
methods, and every 1,000 for L-BFGS. All methods get the time that 48 iterations
of LM take.

The error is the relative 2-norm on 256 x 100 points against the solution of
Cole and Hopf, computed by quadrature. The points are the grid of M. Raissi's
`burgers_shock.mat`, with which the solution agrees to 3e-12 (J. Comput. Phys.
378, 2019, reports 6.7e-4 after L-BFGS).

`--long` takes an hour. It gives each method 105 seconds in float64. LM uses
12,288 points that are drawn again every 20 iterations. SSBroyden gets 10,000
iterations, on 20,480 points that are drawn again every 500 iterations: with
fewer points, the error is limited by the draw and not by the method.
`--smooth` takes twenty minutes. It solves nu = 0.01 by LM, with a float32 model
of four layers.
"""

import one_thread  # noqa: F401

# isort: split
import warnings

import numpy as np
import recording
from burgers import Adam
from burgers import Burgers
from burgers import Method
from burgers import start

import kormos

# The error that Raissi et al. report for this equation.
RAISSI = 6.7e-4
POINTS = 6_144
METHODS = {
    "LM": Method("lm", 10, POINTS),
    "SSBroyden": Method("ssbroyden", 200, POINTS),
    "SSBFGS": Method("ssbfgs", 200, POINTS),
    "BFGS": Method("dense-bfgs", 200, POINTS),
    "L-BFGS": Method("lbfgs", 1_000, POINTS),
}
LONG_METHODS = {
    "LM": Method("lm", 20, 2 * POINTS),
    **{name: METHODS[name] for name in ("SSBroyden", "BFGS", "L-BFGS")},
}
LONG_SECONDS = 105
LONGEST = Method("ssbroyden", 500, 20_480)
LONG_ITERATIONS = 10_000
# Iterations after which quasi-Newton methods are compared.
MARK, LONG_MARK = 1_000, 2_500


def head(mark):
    return [
        "error",
        "largest error",
        "iterations",
        "evaluations",
        "seconds",
        f"seconds to {RAISSI:.1e}",
        f"error after {mark:,} iterations",
    ]


def summary(runs, mark):
    """The columns of `head`, from runs with several starts."""

    def median(value):
        return float(np.median([value(run) for run in runs]))

    return [
        median(lambda r: r.errors[-1]),
        max(run.errors[-1] for run in runs),
        round(median(lambda r: r.iterations[-1])),
        round(median(lambda r: r.evaluations[-1])),
        median(lambda r: r.seconds[-1]),
        median(lambda r: r.seconds_to(RAISSI)),
        median(lambda r: r.error_at(mark)),
    ]


def curves(record, title, traces):
    for axis, label in (
        ("seconds", "seconds after Adam"),
        ("evaluations", "evaluations of the residuals and derivatives"),
    ):
        record.curves(
            f"{title}: error against {axis}",
            label,
            "relative error",
            {
                name: (getattr(runs[0], axis), runs[0].errors)
                for name, runs in traces.items()
            },
            "The first start.",
            xscale="linear" if axis == "seconds" else "log",
        )


def equal_seconds(record, dtype, seeds, quick):
    """All methods, with the seconds that LM takes."""
    problem = Burgers(dtype)
    iterations, steps, points = (5, 250, 512) if quick else (48, 2_500, POINTS)
    methods = dict(list(METHODS.items())[: 2 if quick else None])
    traces = {name: [] for name in [*methods, "Adam"]}
    starts = []
    for seed in range(seeds):
        weights, trace = start(problem, points, seed, steps)
        starts.append((trace.errors[-1], trace.seconds[-1]))
        limits = {"max_iterations": iterations}
        for name, method in methods.items():
            method = method._replace(points=points)
            keep = 1 if name == "LM" else 50
            run = problem.run(weights, method, keep, **limits)
            traces[name].append(run)
            if name == "LM":
                seconds = run.seconds[-1]
                limits = {"max_iterations": 10**6, "max_seconds": seconds}
        _, run = Adam(problem, points).run(weights, seconds=seconds)
        traces["Adam"].append(run)

    error, seconds = np.median(starts, axis=0)
    record.table(
        f"Burgers, nu = 0.01 / pi, {dtype}",
        ["method", *head(MARK)],
        [[name, *summary(runs, MARK)] for name, runs in traces.items()],
        f"Medians of {seeds} starts, compiling included. The starts, by "
        f"{steps:,} steps of Adam in {seconds:.0f} s, have an error of "
        f"{error:.1e}.",
    )
    curves(record, f"Burgers, {dtype}", traces)


def long_comparison(record, seeds):
    """All methods for the same seconds, in float64, and one for longer."""
    problem = Burgers("float64")
    traces = {name: [] for name in [*LONG_METHODS, "Adam"]}
    longest = []
    for seed in range(seeds):
        weights, _ = start(problem, POINTS, seed, 2_500)
        for name, method in LONG_METHODS.items():
            run = problem.run(
                weights,
                method,
                5 if name == "LM" else 50,
                max_iterations=10**6,
                max_seconds=LONG_SECONDS,
            )
            traces[name].append(run)
            print(seed, name, *summary([run], LONG_MARK), flush=True)
        _, run = Adam(problem, POINTS).run(weights, seconds=LONG_SECONDS)
        traces["Adam"].append(run)
        run = problem.run(weights, LONGEST, 250, max_iterations=LONG_ITERATIONS)
        longest.append(run)
        print(seed, *summary([run], LONG_MARK), flush=True)
    columns = ["method", *head(LONG_MARK)]
    record.table(
        f"Burgers, nu = 0.01 / pi, {LONG_SECONDS} seconds",
        columns,
        [[name, *summary(runs, LONG_MARK)] for name, runs in traces.items()],
        f"Medians of {seeds} starts, compiling included.",
    )
    curves(record, f"Burgers, {LONG_SECONDS} seconds", traces)
    record.table(
        f"Burgers, nu = 0.01 / pi, {LONG_ITERATIONS:,} iterations",
        columns,
        [["SSBroyden", *summary(longest, LONG_MARK)]],
        f"Medians of {seeds} starts.",
    )


def smoother(record, seeds):
    """nu = 0.01, whose solution has no shock, in float32."""
    rows = []
    goal, method = 4e-7, Method("lm", 20, 12_288)
    problem = Burgers("float32", 0.01, (20,) * 4)
    for seed in range(seeds):
        weights, adam = start(problem, method.points, seed, 2_500)
        run = problem.run(weights, method, 5, max_iterations=180)
        rows.append(
            [
                seed,
                adam.errors[-1],
                adam.seconds[-1],
                run.errors[-1],
                min(run.errors),
                run.iterations[-1],
                run.seconds[-1],
                run.seconds_to(goal),
            ]
        )
        print(rows[-1], flush=True)
    record.table(
        "Burgers, nu = 0.01, float32, four layers of 20, LM",
        [
            "start",
            "error after Adam",
            "seconds of Adam",
            "error",
            "lowest error",
            "iterations",
            "seconds",
            f"seconds to {goal:.0e}",
        ],
        rows,
        f"{method.points:,} points, drawn again every {method.every} "
        "iterations.",
    )


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--long", action="store_true", help="long runs alone")
    parser.add_argument("--smooth", action="store_true", help="nu = 0.01 alone")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    part = "-long" * args.long or "-smooth" * args.smooth
    record = recording.Record(f"pinns{part}", __doc__, args)
    seeds = args.seeds or (1 if args.quick else 3)
    if args.long:
        with kormos.precision("float64"):
            long_comparison(record, seeds)
        return
    if args.smooth:
        with kormos.precision("float32"):
            smoother(record, seeds)
        return
    for dtype in args.dtype[: 1 if args.quick else None]:
        with kormos.precision(dtype):
            equal_seconds(record, dtype, seeds, args.quick)


if __name__ == "__main__":
    main()
