"""Levenberg-Marquardt: what it reaches, how fast, and how it compares.

`"lm"` and its peers start from the same points and run alternately in one
process on one thread. SciPy and optimistix take part with KERAS_BACKEND=jax.
Seconds include compiling; milliseconds are those of an iteration after the
fifth, and of optimistix of a step, rejected ones too.

    KERAS_BACKEND=jax python benchmarks/least_squares.py --problem nist sinc

`nist`: NIST's regressions from both starts: how many got 6 and 9 digits in the
worst parameter; evaluations, of residuals or of a Jacobian, and second
derivatives along a step (products), of all.

`sinc`: sin(10 x) / (10 x) on 20,000 points, network 1-20-1: median loss.

`poisson`: Poisson's equation on a square, network 2-32-1 (Mueller and Zeinhofer
2023): median relative L2 error.

`burgers`: `problems.py`'s, on 6,144 points that are drawn anew: relative L2
error after Adam, 120 iterations of LM, and as many seconds of SSBroyden.

`digits`: scikit-learn's, network 64-20-10, cross-entropy: training loss.

`memory`: what a fit of 1,000,000 rows in 100 chunks adds to the process, run in
one of its own, and only when it is named.
"""

import one_thread  # noqa: F401

# isort: split
import argparse
import importlib.util
import pathlib
import resource
import subprocess
import sys
import time
import warnings

import keras
import numpy as np
import problems
import scipy.optimize
from keras import ops

import kormos
from kormos.optimizers import LevenbergMarquardt

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests"))
import nist as strd

IS_JAX = keras.backend.backend() == "jax"
HAS_OPTIMISTIX = IS_JAX and importlib.util.find_spec("optimistix") is not None
VARIANTS = {
    "lm": {},
    "lm, acceleration=False": {"acceleration": False},
    'lm, preset="matlab"': {"preset": "matlab"},
}


def network(inputs, *widths, last=None):
    layers = [keras.layers.Dense(w, activation="tanh") for w in widths[:-1]]
    layers.append(keras.layers.Dense(widths[-1], activation=last))
    return keras.Sequential([keras.Input((inputs,)), *layers])


def split(model, theta):
    """The weights of a model in a vector."""
    shapes = [v.shape for v in model.trainable_variables]
    parts = ops.split(theta, np.cumsum([np.prod(s) for s in shapes])[:-1])
    return [ops.reshape(p, s) for p, s in zip(parts, shapes, strict=True)]


def per_iteration(seconds):
    """Milliseconds of an iteration after the fifth."""
    return 1e3 * (seconds[-1] - seconds[4]) / max(len(seconds) - 5, 1)


def median_rows(found):
    for name, runs in found.items():
        *values, last = np.median(runs, axis=0)
        yield [name, *(f"{v:.1e}" for v in values), f"{last:.1f}"]


def optimistix_lm(residuals, tolerance, steps):
    """A compiled function of a start: the solution and the steps."""
    import jax
    import optimistix

    solver = optimistix.LevenbergMarquardt(tolerance, tolerance)

    def solve(theta):
        found = optimistix.least_squares(
            residuals, solver, theta, max_steps=steps, throw=False
        )
        return found.value, found.stats["num_steps"]

    return jax.jit(solve)


def nist_ours(problem, start):
    b = keras.Variable(np.array(start), dtype="float64")
    result = kormos.least_squares(lambda: problem.residuals(b), [b])
    return b.value, result.evaluations, result.hessian_products


def nist_scipy(problem, start, **options):
    import jax

    calls = []

    def counted(fn):
        compiled = jax.jit(fn)
        return lambda b: calls.append(b) or np.array(compiled(b))

    fn, jac = map(counted, (problem.residuals, jax.jacfwd(problem.residuals)))
    options.update(dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15))
    try:
        b = scipy.optimize.least_squares(fn, start, jac, **options).x
    except ValueError:  # Residuals are not finite somewhere.
        b = np.full(len(start), np.nan)
    return b, len(calls), 0


def nist_optimistix(problem, start):
    solve = optimistix_lm(lambda b, _: problem.residuals(b), 1e-12, 10_000)
    b, steps = solve(np.array(start))
    return b, int(steps), 0


def nist(dtype, args):
    methods = {"lm": (nist_ours, {})}
    for method in ("lm", "trf") if IS_JAX else ():
        for scale in (1.0, "jac"):
            options = {"method": method, "x_scale": scale}
            methods[f"SciPy {method}, x_scale={scale}"] = nist_scipy, options
    if HAS_OPTIMISTIX:
        methods["optimistix LM (steps)"] = nist_optimistix, {}
    found = {name: [] for name in methods}
    for problem in strd.problems()[: 2 if args.quick else None]:
        for start in problem.starts:
            for name, (run, options) in methods.items():
                begin = time.perf_counter()
                b, *counts = run(problem, start, **options)
                counts.append(time.perf_counter() - begin)
                digits = np.nan_to_num(problem.digits(b))
                found[name].append((digits >= 6, digits >= 9, *counts))
    yield "method", "6 digits", "9 digits", "evaluations", "products", "seconds"
    for name, runs in found.items():
        *counts, seconds = np.sum(runs, axis=0)
        yield name, *(f"{c:,.0f}" for c in counts), f"{seconds:.1f}"


def sinc_optimistix(model, x, y, marks):
    def residuals(theta, _):
        outputs, _ = model.stateless_call(split(model, theta), [], x)
        return outputs - y

    theta = np.concatenate([w.reshape(-1) for w in model.get_weights()])
    for mark in marks:
        solve = optimistix_lm(residuals, 0.0, mark).lower(theta).compile()
        begin = time.perf_counter()
        end, steps = map(np.array, solve(theta))
        seconds = time.perf_counter() - begin
        yield float(ops.mean(residuals(end, None) ** 2))
    yield 1e3 * seconds / steps


def sinc(dtype, args):
    marks = [10, 20] if args.quick else [100, 300] + [1_000] * args.long
    x = np.linspace(-1, 1, 500 if args.quick else 20_000)[:, None].astype(dtype)
    y = np.sinc(10 * x / np.pi).astype(dtype)
    found = {name: [] for name in VARIANTS}
    for seed in range(args.seeds or 3):
        keras.utils.set_random_seed(seed)
        model = network(1, 20, 1)
        model.compile(loss="mse")
        start = model.get_weights()
        for name, options in VARIANTS.items():
            model.set_weights(start)
            lm = LevenbergMarquardt(epochs=marks[-1], **options)
            history = kormos.fit(model, x, y, optimizer=lm, verbose=0)
            losses = history.history["loss"]
            losses = [losses[min(m, len(losses)) - 1] for m in marks]
            found[name].append((*losses, per_iteration(history.seconds)))
        if HAS_OPTIMISTIX and dtype == "float64":
            model.set_weights(start)
            runs = found.setdefault("optimistix LM (steps)", [])
            runs.append([*sinc_optimistix(model, x, y, marks)])
    yield ["method", *(f"loss at {m}" for m in marks), "ms an iteration"]
    yield from median_rows(found)


def grid(*sides):
    return np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)


def relative(values, exact):
    values = ops.convert_to_numpy(values)[:, 0]
    return np.linalg.norm(values - exact) / np.linalg.norm(exact)


def derivatives(u, points, axis):
    """Values, first and second derivatives of u along an axis."""
    unit = ops.convert_to_tensor(np.eye(2)[axis], dtype=points.dtype)
    unit = ops.broadcast_to(unit, ops.shape(points))

    def slope(points):
        return ops.jvp(u, (points,), (unit,))

    (value, first), (_, second) = ops.jvp(slope, (points,), (unit,))
    return value, first, second


def poisson(dtype, args):
    marks = [5, 20] if args.quick else [100, 300]
    t, side = np.linspace(0, 1, 30), np.arange(1, 29) / 29
    edges = [grid(t, [0]), grid(t, [1]), grid([0], t), grid([1], t)]
    data = {"pde": grid(side, side), "bc": np.concatenate(edges)}
    test = grid(*[np.linspace(0, 1, 201)] * 2)
    exact = np.sin(np.pi * test).prod(axis=1)
    model, found = network(2, 32, 1), {name: [] for name in VARIANTS}

    def residuals(data):
        laplacian = sum(derivatives(model, data["pde"], i)[2] for i in (0, 1))
        source = ops.prod(ops.sin(np.pi * data["pde"]), axis=1, keepdims=True)
        pde = laplacian + 2 * np.pi**2 * source
        return {"pde": pde, "bc": model(data["bc"])}

    for seed in range(args.seeds or 4):
        rng = np.random.default_rng(seed)
        shapes = [w.shape for w in model.get_weights()]
        start = [0.1 * rng.standard_normal(s) for s in shapes]
        for name, options in VARIANTS.items():
            model.set_weights(start)
            lm, errors = LevenbergMarquardt(**options), []
            for done, mark in zip([0, *marks], marks, strict=False):
                result = kormos.least_squares(
                    residuals,
                    model.trainable_variables,
                    lm,
                    data=data,
                    loss_weights={"bc": 4.0},
                    max_iterations=mark - done,
                    resume=done > 0,
                )
                errors.append(relative(model(test), exact))
            ms = per_iteration(result.history["seconds"])
            found[name].append((*errors, ms))
    yield ["method", *(f"error at {m}" for m in marks), "ms an iteration"]
    yield from median_rows(found)


def burgers_exact(t, x):
    """Cole and Hopf's solution on a grid, by Gauss and Hermite's rule."""
    z, weights = np.polynomial.hermite.hermgauss(200)
    spread = np.sqrt(4 * problems.VISCOSITY * t)[:, None, None]
    y = np.pi * (x[:, None] - spread * z)
    powers = -np.cos(y) / (2 * np.pi * problems.VISCOSITY)
    weights = weights * np.exp(powers - powers.max(axis=-1, keepdims=True))
    return -((weights * np.sin(y)).sum(-1) / weights.sum(-1)).reshape(-1)


def burgers(dtype, args):
    iterations, count = (3, 256) if args.quick else (120, 6_144)
    net = network(3, 20, 20, 20, 1)

    def u(points):
        t, angle = points[:, :1], np.pi * points[:, 1:]
        features = ops.concatenate([t, ops.cos(angle), ops.sin(angle)], axis=1)
        return t * net(features) - ops.sin(angle)

    def residuals(points):
        value, u_x, u_xx = derivatives(u, points, 1)
        u_t = derivatives(u, points, 0)[1]
        return u_t + value * u_x - problems.VISCOSITY * u_xx

    def sampler(count, rng):
        return rng.uniform((0, -1), (1, 1), (count, 2))

    def run(theta, method, every, **limits):
        net.set_weights(split(net, theta))
        return kormos.least_squares(
            residuals,
            net.trainable_variables,
            method,
            data=sampler(count, np.random.default_rng(0)),
            batch_size=1_024,
            callbacks=[kormos.callbacks.Resample(sampler, every, 50_000)],
            **limits,
        )

    axes = np.linspace(0, 0.99, 100), np.linspace(-1, 1, 256)
    points, exact = grid(*axes).astype(dtype), burgers_exact(*axes)

    def row(seed, method, iterations, seconds):
        error = relative(u(points), exact)
        return seed, method, iterations, f"{error:.1e}", f"{seconds:.0f}"

    yield "seed", "method", "iterations", "error", "seconds"
    for seed in range(args.seeds or 1):
        begin = time.perf_counter()
        theta = problems.burgers(dtype).start(seed)
        seconds = time.perf_counter() - begin
        net.set_weights(split(net, theta))
        yield row(seed, "Adam", 2_500, seconds)
        result = run(theta, "lm", 10, max_iterations=iterations)
        yield row(seed, "lm", result.iterations, result.time)
        limits = {"max_iterations": 10**6, "max_seconds": result.time}
        result = run(theta, "ssbroyden", 200, **limits)
        yield row(seed, "ssbroyden", result.iterations, result.time)


def digits(dtype, args):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    thin = 9 if args.quick else 1
    x, y = (x[::thin] / 16).astype(dtype), y[::thin]
    methods = {"lm": {"epochs": 30}, "lbfgs": {"epochs": 300, "max_evals": 300}}
    yield "seed", "method", "loss", "iterations", "evaluations", "seconds"
    for seed in range(args.seeds or 1):
        keras.utils.set_random_seed(seed)
        model = network(64, 20, 10, last="softmax")
        model.compile(loss="sparse_categorical_crossentropy")
        start = model.get_weights()
        for name, limits in methods.items():
            model.set_weights(start)
            limits = {**limits, "optimizer": name, "verbose": 0}
            result = kormos.fit(model, x, y, **limits).result
            counts = result.iterations, result.evaluations
            loss, seconds = f"{result.loss:.1e}", f"{result.time:.1f}"
            yield seed, name, loss, *counts, seconds


def memory(dtype, args):
    rows = 10_000 if args.quick else 1_000_000
    x = np.random.default_rng(0).random((rows, 8), dtype="float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    model = network(8, 20, 15, 1)
    model.compile(loss="mse")
    limits = {"optimizer": "lm", "epochs": 3, "verbose": 0}
    before = pathlib.Path("/proc/self/statm").read_text().split()[1]
    before = int(before) * resource.getpagesize() / 1e6
    result = kormos.fit(model, x, y, batch_size=rows // 100, **limits).result
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3
    yield "rows", "parameters", "data, MB", "peak, MB", "before, MB", "seconds"
    sizes = (x.nbytes + y.nbytes) / 1e6, peak, before, result.time
    yield rows, model.count_params(), *(f"{v:.0f}" for v in sizes)


PROBLEMS = {
    "nist": (nist, ("float64",)),
    "sinc": (sinc, ("float64", "float32")),
    "poisson": (poisson, ("float64",)),
    "burgers": (burgers, ("float64", "float32")),
    "digits": (digits, ("float32",)),
    "memory": (memory, ("float32",)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--long", action="store_true", help="1,000 iterations")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    warnings.simplefilter("ignore", kormos.ConvergenceWarning)
    names = args.problem or [n for n in PROBLEMS if n != "memory"]
    print(f"{keras.backend.backend()}, Keras {keras.__version__}, one thread")
    for name in names:
        if name == "memory" and len(names) > 1:
            # The peak of a process is the highest of all that it ran.
            quick = ["--quick"] * args.quick
            command = [sys.executable, __file__, "--problem", name, *quick]
            subprocess.run(command, check=True)
            continue
        solve, dtypes = PROBLEMS[name]
        for dtype in dtypes:
            print(f"\n{name}, {dtype}\n")
            with kormos.precision(dtype):
                for i, row in enumerate(solve(dtype, args)):
                    print(f"| {' | '.join(map(str, row))} |", flush=True)
                    if i == 0:
                        print("|---" * len(row) + "|")


if __name__ == "__main__":
    main()
