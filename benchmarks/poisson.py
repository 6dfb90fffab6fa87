"""Second-order methods for a network of many parameters: Poisson's equation.

-lap u = f on the unit cube, by a network with tanh, on 3,000 points inside and
500 on the boundary: 3-32-32-1 with u = prod sin(pi x), 1,217 parameters, and
5-64-64-48-48-1 with u = sum cos(pi x), 10,065. All methods have the same start,
points and residuals, float64, one thread, and the same processor time, so that
other work on the machine does not matter. For kormos' methods the time begins
at the first iterate, and includes what is compiled later. For the peers it
begins after compiling. The table also has the seconds of wall time.

The error is the relative 2-norm on 20,000 other points. Peers are randngd (A.
Bioli et al., arXiv:2505.11638) and ssbroyden-optimistix, if installed. Each
method runs in its own process, with `--method`.
"""

import one_thread  # noqa: F401

# isort: split
import importlib.util
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import keras
import numpy as np
import recording

import kormos

SIZES = {"small": (3, (32, 32), 30), "large": (5, (64, 64, 48, 48), 120)}
OURS = ("lm", "lbfgs", "ssbroyden", "gauss-newton")
PEERS = {
    "randngd full": "randngd",
    "randngd nystrom": "randngd",
    "ssbroyden-optimistix": "ssbroyden_optimistix",
}
INSIDE, BOUNDARY, OTHERS = 3_000, 500, 20_000
TITLES = ["method", "iterations", "error", "loss", "seconds by the clock"]


class Poisson:
    """The problem, with its start, as functions of a list of arrays."""

    def __init__(self, size, seed):
        self.dim, widths, self.seconds = SIZES[size]
        rng = np.random.RandomState(seed)
        sides = [self.dim, *widths, 1]
        self.start = []
        for a, b in zip(sides[:-1], sides[1:], strict=True):
            matrix = rng.uniform(-1, 1, (a, b)) * np.sqrt(6 / (a + b))
            self.start += [matrix, np.zeros(b)]
        self.inside = rng.uniform(size=(INSIDE, self.dim))
        self.boundary = rng.uniform(size=(BOUNDARY, self.dim))
        side = rng.randint(self.dim, size=BOUNDARY)
        ends = rng.randint(2, size=BOUNDARY)
        self.boundary[np.arange(BOUNDARY), side] = ends
        self.others = rng.uniform(size=(OTHERS, self.dim))

    def solution(self, x):
        if self.dim <= 3:
            return jnp.prod(jnp.sin(jnp.pi * x), axis=-1)
        return jnp.sum(jnp.cos(jnp.pi * x), axis=-1)

    def source(self, x):
        factor = self.dim if self.dim <= 3 else 1
        return factor * jnp.pi**2 * self.solution(x)

    def network(self, parts, x):
        for matrix, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            x = jnp.tanh(x @ matrix + bias)
        return (x @ parts[-2] + parts[-1])[..., 0]

    def of_equation(self, parts, x):
        def second(unit):
            along = jnp.broadcast_to(unit, x.shape)

            def slope(x):
                return jax.jvp(
                    lambda x: self.network(parts, x), (x,), (along,)
                )[1]

            return jax.jvp(slope, (x,), (along,))[1]

        laplacian = sum(second(unit) for unit in jnp.eye(self.dim))
        return laplacian + self.source(x)

    def of_boundary(self, parts, x):
        return self.network(parts, x) - self.solution(x)

    def loss(self, parts):
        inside = self.of_equation(parts, jnp.asarray(self.inside))
        boundary = self.of_boundary(parts, jnp.asarray(self.boundary))
        return jnp.mean(inside**2) / 2 + jnp.mean(boundary**2) / 2

    def error(self, parts):
        exact = self.solution(jnp.asarray(self.others))
        apart = self.network(parts, jnp.asarray(self.others)) - exact
        return float(jnp.linalg.norm(apart) / jnp.linalg.norm(exact))


def ours(problem, method, seconds):
    """Runs a method of kormos; iterations and the parameters."""
    variables = [keras.Variable(a, dtype="float64") for a in problem.start]
    begun, latest = [], [0, problem.start]

    def note(iteration, logs):
        begun.append(time.process_time())
        if begun[-1] - begun[0] > seconds:
            return True
        latest[:] = iteration, [np.array(v.value) for v in variables]
        return False

    def residuals(data):
        parts = [v.value for v in variables]
        return {
            "inside": problem.of_equation(parts, data["inside"]),
            "boundary": problem.of_boundary(parts, data["boundary"]),
        }

    limits = {"max_iterations": 10**6, "max_seconds": 20 * seconds}
    if method in ("lm", "gauss-newton"):
        kormos.least_squares(
            residuals,
            variables,
            method,
            data={"inside": problem.inside, "boundary": problem.boundary},
            loss_weights={"inside": 0.5, "boundary": 0.5},
            callbacks=[note],
            **limits,
        )
    else:
        kormos.minimize(
            lambda: problem.loss([v.value for v in variables]),
            variables,
            method,
            callback=note,
            **limits,
        )
    return latest


def peer(problem, method):
    """A solver of a peer, in the form of optimistix."""
    if method == "ssbroyden-optimistix":
        import ssbroyden_optimistix as peers

        search = peers.Zoom(initial_guess_strategy="increase")
        return peers.SSBroyden(search=search, rtol=0.0, atol=0.0)
    import randngd

    points = jnp.asarray(problem.inside), jnp.asarray(problem.boundary)
    kinds = problem.of_equation, problem.of_boundary
    pairs = [
        (lambda parts, x, fn=fn: fn(parts, x[None])[0], given)
        for fn, given in zip(kinds, points, strict=True)
    ]
    is_full = method == "randngd full"
    start = [jnp.asarray(a) for a in problem.start]
    metric = randngd.metrics.gauss_newton(
        pairs, start, representation="full" if is_full else "jacobians"
    )
    if is_full:
        made = randngd.NGDFull(metric)
    else:
        most = min(500, sum(a.size for a in start) // 2)
        made = randngd.NystromNGD(metric, kind="gaussian", ell_max=most, key=0)
    return randngd.ngd_solver(made, min_stepsize=1e-15)


def theirs(problem, method, seconds):
    """Runs a peer; iterations and the parameters."""
    import equinox

    solver, tags = peer(problem, method), frozenset()

    def fn(parts, _):
        return problem.loss(parts), None

    parts = [jnp.asarray(a) for a in problem.start]
    shapes = jax.ShapeDtypeStruct((), jnp.float64), None
    state = solver.init(fn, parts, None, {}, *shapes, tags)
    arrays, rest = equinox.partition(state, equinox.is_array)

    @jax.jit
    def step(parts, arrays):
        whole = equinox.combine(arrays, rest)
        parts, state, _ = solver.step(fn, parts, None, {}, whole, tags)
        return parts, equinox.filter(state, equinox.is_array)

    parts, arrays = jax.block_until_ready(step(parts, arrays))
    begun, count = time.process_time(), 1
    while time.process_time() - begun < seconds:
        parts, arrays = jax.block_until_ready(step(parts, arrays))
        count += 1
    return count, parts


def one(args):
    """Runs a method in this process, and prints a row of numbers."""
    kormos.enable_float64()
    problem = Poisson(args.size, args.seed)
    seconds = args.seconds or problem.seconds
    run = ours if args.method in OURS else theirs
    begun = time.perf_counter()
    count, parts = run(problem, args.method, seconds)
    spent = time.perf_counter() - begun
    parts = [jnp.asarray(a) for a in parts]
    print(count, problem.error(parts), float(problem.loss(parts)), spent)


def rows(size, seeds, seconds):
    """A row for each method, of medians over the seeds."""
    for method in (*OURS, *PEERS):
        package = PEERS.get(method)
        if package and importlib.util.find_spec(package) is None:
            print(f"Not installed, left out: {method}.")
            continue
        found = []
        for seed in seeds:
            command = [sys.executable, __file__, "--method", method]
            command += ["--size", size, "--seed", str(seed)]
            command += ["--seconds", str(seconds)]
            text = subprocess.check_output(command, text=True)
            found.append([float(n) for n in text.splitlines()[-1].split()])
        yield [method, *np.median(found, axis=0)]


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--method", help="run this one, in this process")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    args = parser.parse_args()
    if args.method:
        return one(args)
    record = recording.Record("poisson", __doc__, args)
    for size in ("small",) if args.quick else SIZES:
        seeds = (0,) if args.quick else (0, 1, 2)
        seconds = args.seconds or (5 if args.quick else SIZES[size][2])
        record.table(
            f"{size}, {seconds} seconds, median of {len(seeds)} starts",
            TITLES,
            list(rows(size, seeds, seconds)),
        )
    return None


if __name__ == "__main__":
    main()
