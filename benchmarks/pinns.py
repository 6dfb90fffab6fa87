"""A physics-informed network: Burgers' equation, against the exact solution.

u_t + u u_x = nu u_xx on -1 < x < 1, 0 < t < 1, u(0, x) = -sin(pi x). A network
of three layers of 20 in (t, cos pi x, sin pi x) with tanh, N, and u = -sin pi x
+ t N: the conditions hold exactly, and the loss is the mean squared residual on
6,144 points, drawn by the residual from 50,000 (Wu et al. 2023). Every method
starts where 2,500 steps of Adam lead, with its own redraws: LM each 10
iterations, Adam 250, quasi-Newton 200, L-BFGS 1,000. All get the seconds that
120 iterations of LM take.

The error is the relative 2-norm on 256 x 100 points against Cole and Hopf's
solution by quadrature: the grid of M. Raissi's `burgers_shock.mat`, with which
it agrees to 3e-12 (J. Comput. Phys. 378, 2019, reports 6.7e-4 after L-BFGS).

`--long`, an hour, gives each method 105 seconds in the precision that suits it,
SSBroyden 10,000 iterations, and LM nu = 0.01 with a float32 model of four
layers.
"""

import one_thread  # noqa: F401

# isort: split
import time
import warnings
from typing import NamedTuple

import keras
import numpy as np
import recording
from keras import ops

import kormos

VISCOSITY = 0.01 / np.pi
# What Raissi et al. report for this equation.
RAISSI = 6.7e-4
MARK = 1_000
CANDIDATES = 50_000


class Method(NamedTuple):
    """A method, and after how many iterations points are drawn anew."""

    optimizer: str
    every: int


METHODS = {
    "LM": Method("lm", 10),
    "SSBroyden": Method("ssbroyden", 200),
    "SSBFGS": Method("ssbfgs", 200),
    "BFGS": Method("dense-bfgs", 200),
    "L-BFGS": Method("lbfgs", 1_000),
}


def sampler(count, rng):
    return rng.uniform((0, -1), (1, 1), (count, 2))


def exact(nu, t, x):
    """Cole and Hopf's solution on a grid, by Gauss and Hermite's rule."""
    z, weights = np.polynomial.hermite.hermgauss(200)
    spread = np.sqrt(4 * nu * t)[:, None, None]
    y = np.pi * (x[:, None] - spread * z)
    powers = -np.cos(y) / (2 * np.pi * nu)
    weights = weights * np.exp(powers - powers.max(axis=-1, keepdims=True))
    return -((weights * np.sin(y)).sum(-1) / weights.sum(-1)).reshape(-1)


class Burgers:
    """The equation, its network and what a run of it finds."""

    def __init__(self, dtype, nu=VISCOSITY, widths=(20, 20, 20), count=6_144):
        self.nu, self.count, self.dtype = nu, count, dtype
        layers = [
            keras.layers.Dense(
                width, activation="tanh", kernel_initializer="glorot_normal"
            )
            for width in widths
        ]
        last = keras.layers.Dense(1, kernel_initializer="glorot_normal")
        self.net = keras.Sequential([keras.Input((3,)), *layers, last])
        t, x = np.linspace(0, 0.99, 100), np.linspace(-1, 1, 256)
        grid = np.meshgrid(t, x, indexing="ij")
        self._grid = np.stack(grid, axis=-1).reshape(-1, 2).astype(dtype)
        self._exact = exact(nu, t, x)

    def u(self, points):
        t, angle = points[:, :1], np.pi * points[:, 1:]
        features = ops.concatenate([t, ops.cos(angle), ops.sin(angle)], axis=1)
        return t * self.net(features) - ops.sin(angle)

    def residuals(self, points):
        along_t, along_x = (
            ops.broadcast_to(
                ops.convert_to_tensor(unit, points.dtype), ops.shape(points)
            )
            for unit in np.eye(2)
        )

        def slope(points):
            return ops.jvp(self.u, (points,), (along_x,))

        (value, u_x), (_, u_xx) = ops.jvp(slope, (points,), (along_x,))
        _, u_t = ops.jvp(self.u, (points,), (along_t,))
        return u_t + value * u_x - self.nu * u_xx

    def error(self, weights=None):
        """The relative error, of these weights."""
        if weights is not None:
            self.net.set_weights(weights)
        found = ops.convert_to_numpy(self.u(self._grid))[:, 0]
        difference = found - self._exact
        return np.linalg.norm(difference) / np.linalg.norm(self._exact)

    def run(self, weights, method, keep=1, **limits):
        """Fits from these weights: a `Trace`."""
        self.net.set_weights(weights)
        kept = {}

        def note(iteration, logs):
            if iteration % keep == 0:
                kept[iteration] = self.net.get_weights()

        resample = kormos.callbacks.Resample(sampler, method.every, CANDIDATES)
        result = kormos.least_squares(
            self.residuals,
            self.net.trainable_variables,
            method.optimizer,
            data=sampler(self.count, np.random.default_rng(0)),
            batch_size=1_024,
            callbacks=[note, resample],
            **limits,
        )
        history = result.history
        count = len(history["seconds"])
        kept[count] = self.net.get_weights()
        kept[0] = weights
        marks = sorted(kept)
        return Trace(
            marks,
            [[0, *history["fg_evals"]][i] for i in marks],
            [[0, *history["seconds"]][i] for i in marks],
            [self.error(kept[i]) for i in marks],
        )


class Trace(NamedTuple):
    """Iterations, evaluations and seconds, and the error at each."""

    iterations: list
    evaluations: list
    seconds: list
    errors: list

    def seconds_to(self, error):
        pairs = zip(self.seconds, self.errors, strict=True)
        return next((s for s, e in pairs if e <= error), np.inf)

    def until(self, seconds):
        """The same, cut off after so many seconds."""
        count = sum(s <= seconds for s in self.seconds)
        return Trace(*(values[:count] for values in self))

    def error_at(self, iteration):
        pairs = zip(self.iterations, self.errors, strict=True)
        return next((e for i, e in pairs if i >= iteration), np.nan)


class Adam:
    """Adam by optax, on points that are drawn anew each 250 steps."""

    def __init__(self, problem):
        import jax
        import optax

        self._problem = problem
        variables = problem.net.trainable_variables

        def residuals(parts, points):
            mapping = list(zip(variables, parts, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return problem.residuals(points)

        def loss(parts, points):
            return ops.mean(residuals(parts, points) ** 2)

        rate = optax.exponential_decay(5e-3, 1_000, 0.9)
        self._solver = optax.adam(rate)

        def update(parts, state, points):
            grads = jax.grad(loss)(parts, points)
            change, state = self._solver.update(grads, state)
            return optax.apply_updates(parts, change), state

        self._update = jax.jit(update)
        self._residuals = jax.jit(residuals)

    def run(self, weights, steps=None, seconds=np.inf, keep=250):
        """The weights and the `Trace` of a run."""
        rng = np.random.default_rng(0)
        parts = [ops.convert_to_tensor(w) for w in weights]
        state, done, times, kept = self._solver.init(parts), 0, [], []
        begin = time.perf_counter()
        while done < (steps or np.inf):
            if done % 250 == 0:
                points = self._draw(parts, rng)
            parts, state = self._update(parts, state, points)
            done += 1
            if done % keep == 0:
                parts[0].block_until_ready()
                times.append(time.perf_counter() - begin)
                kept.append([np.array(p) for p in parts])
                if times[-1] > seconds:
                    break
        marks = [keep * (i + 1) for i in range(len(times))]
        errors = [self._problem.error(w) for w in kept]
        return [np.array(p) for p in parts], Trace(marks, marks, times, errors)

    def _draw(self, parts, rng):
        points = sampler(CANDIDATES, rng).astype(self._problem.dtype)
        sizes = np.abs(np.array(self._residuals(parts, points)))[:, 0]
        weights = (sizes / sizes.mean() + 1).astype("float64")
        chosen = rng.choice(
            CANDIDATES,
            self._problem.count,
            replace=False,
            p=weights / weights.sum(),
        )
        return points[chosen]


def start(problem, seed, steps):
    """Where Adam leads from a random start, and how long it takes."""
    keras.utils.set_random_seed(seed)
    model = keras.models.clone_model(problem.net)
    weights, trace = Adam(problem).run(model.get_weights(), steps, keep=steps)
    return weights, trace


HEAD = (
    "error",
    "largest error",
    "iterations",
    "evaluations",
    "seconds",
    f"seconds to {RAISSI:.1e}",
    f"error after {MARK:,} iterations",
)


def summary(runs):
    """What `HEAD` says, of runs from several starts."""

    def median(value):
        return float(np.median([value(run) for run in runs]))

    return [
        median(lambda r: r.errors[-1]),
        max(run.errors[-1] for run in runs),
        round(median(lambda r: r.iterations[-1])),
        round(median(lambda r: r.evaluations[-1])),
        median(lambda r: r.seconds[-1]),
        median(lambda r: r.seconds_to(RAISSI)),
        median(lambda r: r.error_at(MARK)),
    ]


def equal_seconds(record, dtype, seeds, quick):
    """All methods in the seconds of LM."""
    problem = Burgers(dtype, count=512 if quick else 6_144)
    iterations, steps = (5, 250) if quick else (120, 2_500)
    traces = {name: [] for name in [*METHODS, "Adam"]}
    starts = []
    for seed in range(seeds):
        weights, trace = start(problem, seed, steps)
        starts.append((trace.errors[-1], trace.seconds[-1]))
        limits = {"max_iterations": iterations}
        for name, method in METHODS.items():
            keep = 1 if name == "LM" else 50
            run = problem.run(weights, method, keep, **limits)
            traces[name].append(run)
            if name == "LM":
                seconds = run.seconds[-1]
                limits = {"max_iterations": 10**6, "max_seconds": seconds}
        _, run = Adam(problem).run(weights, seconds=seconds)
        traces["Adam"].append(run)

    error, seconds = np.median(starts, axis=0)
    record.table(
        f"Burgers, nu = 0.01 / pi, {dtype}",
        ["method", *HEAD],
        [[name, *summary(runs)] for name, runs in traces.items()],
        f"Medians of {seeds} starts, compiling included. The starts, by "
        f"{steps:,} steps of Adam in {seconds:.0f} s, have an error of "
        f"{error:.1e}.",
    )
    for axis, label in (
        ("seconds", "seconds after Adam"),
        ("evaluations", "evaluations of the residuals and derivatives"),
    ):
        record.curves(
            f"Burgers, {dtype}: error against {axis}",
            label,
            "relative error",
            {
                name: (getattr(runs[0], axis), runs[0].errors)
                for name, runs in traces.items()
            },
            "The first start.",
            xscale="linear" if axis == "seconds" else "log",
        )


# Of the long comparison: in which precision, and for how many seconds.
PRECISIONS = {
    "LM": "float32",
    "SSBroyden": "float64",
    "SSBFGS": "float64",
    "BFGS": "float64",
    "L-BFGS": "float64",
}
LONG_SECONDS = 105
LONG_ITERATIONS = 10_000


def long_comparison(record, seeds):
    """Each method in the precision that suits it, for the same seconds."""
    traces = {name: [] for name in [*METHODS, "Adam"]}
    longest = []
    for seed in range(seeds):
        with kormos.precision("float64"):
            weights, _ = start(Burgers("float64"), seed, 2_500)
        for name, method in METHODS.items():
            limits = {"max_iterations": 10**6, "max_seconds": LONG_SECONDS}
            if name == "SSBroyden":
                limits = {"max_iterations": LONG_ITERATIONS}
            dtype = PRECISIONS[name]
            with kormos.precision(dtype):
                keep = 5 if name == "LM" else 50
                run = Burgers(dtype).run(weights, method, keep, **limits)
            if name == "SSBroyden":
                longest.append(run)
            traces[name].append(run.until(LONG_SECONDS + 1))
            print(seed, name, *summary(traces[name][-1:]), flush=True)
        with kormos.precision("float32"):
            problem = Burgers("float32")
            _, run = Adam(problem).run(
                [w.astype("float32") for w in weights], seconds=LONG_SECONDS
            )
        traces["Adam"].append(run)
    record.table(
        f"Burgers, nu = 0.01 / pi, {LONG_SECONDS} seconds",
        ["method", "precision", *HEAD],
        [
            [name, PRECISIONS.get(name, "float32"), *summary(runs)]
            for name, runs in traces.items()
        ],
        f"Medians of {seeds} starts, compiling included.",
    )
    record.curves(
        f"Burgers, {LONG_SECONDS} seconds: error against seconds",
        "seconds after Adam",
        "relative error",
        {k: (runs[0].seconds, runs[0].errors) for k, runs in traces.items()},
        "The first start.",
        xscale="linear",
    )
    record.table(
        f"Burgers, nu = 0.01 / pi, {LONG_ITERATIONS:,} iterations",
        ["method", "precision", *HEAD],
        [["SSBroyden", "float64", *summary(longest)]],
        f"Medians of {seeds} starts.",
    )


def smoother(record, seeds):
    """nu = 0.01, whose solution has no shock, in float32."""
    rows = []
    goal = 4e-7
    for seed in range(seeds):
        with kormos.precision("float32"):
            problem = Burgers("float32", 0.01, (20,) * 4, 8_192)
            weights, adam = start(problem, seed, 2_500)
            run = problem.run(weights, METHODS["LM"], 5, max_iterations=120)
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
        "8,192 points, drawn anew each 10 iterations.",
    )


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--long", action="store_true", help="long runs alone")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    name = "pinns-long" if args.long else "pinns"
    record = recording.Record(name, __doc__, args)
    seeds = args.seeds or (1 if args.quick else 3)
    if args.long:
        smoother(record, seeds)
        long_comparison(record, seeds)
        return
    for dtype in args.dtype[: 1 if args.quick else None]:
        with kormos.precision(dtype):
            equal_seconds(record, dtype, seeds, args.quick)


if __name__ == "__main__":
    main()
