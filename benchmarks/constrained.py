"""Constraints: kormos' own methods against SciPy's, on problems of CUTEst.

Each method minimizes each problem of `data/cutest_constrained.tsv` by
`kormos.minimize`, on JAX in float64, from the collection's start. A problem is
solved if the end is feasible to 1e-8 and its loss is within 1e-6 of the best
known. Minima are local: if two methods end at feasible points with different
losses, both may be right. Evaluations are those of the loss with its gradient,
including the trials at the end. The last column has SciPy's own, without
trials.
"""

import csv
import functools
import os
import pathlib
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import recording
import scipy.optimize
import sif2jax

import kormos

jax.config.update("jax_enable_x64", True)

DATA = pathlib.Path(__file__).parent / "data" / "cutest_constrained.tsv"
METHODS = "lbfgs", "dense-bfgs", "slsqp", "trust-constr"
FEASIBLE, NEAR = 1e-8, 1e-6
LIMITS = {"max_iterations": 1000, "max_evals": 5000}


def table():
    """Pairs of a problem of sif2jax and the least value known."""
    lines = DATA.read_text().splitlines()
    rows = csv.DictReader(
        (line for line in lines if not line.startswith("#")), delimiter="\t"
    )
    for row in rows:
        problem = getattr(sif2jax.cutest, row["problem"])()
        yield row["problem"], problem, float(row["best"])


def constraints_of(problem):
    """Pairs of a type and a function of the vector."""

    def part(index, theta):
        return jnp.ravel(problem.constraint(theta)[index])

    present = problem.constraint(problem.y0)
    return [
        (kind, functools.partial(part, index))
        for index, kind in enumerate(("eq", "ineq"))
        if present[index] is not None and jnp.size(present[index])
    ]


def limits_of(problem, theta):
    """The lower and upper bounds of a problem, or `None`."""
    if getattr(problem, "bounds", None) is None:
        return None
    return tuple(np.broadcast_to(side, theta.shape) for side in problem.bounds)


def minimized(problem, method):
    """A run of kormos: the point, the result."""
    theta = np.array(problem.y0, "float64").ravel()
    v = keras.Variable(theta)
    limits = limits_of(problem, theta)
    result = kormos.minimize(
        lambda: problem.objective(v.value, problem.args),
        [v],
        method,
        bounds=limits and [(v, limits)],
        constraints=[
            {"type": kind, "fun": lambda fn=fn: fn(v.value)}
            for kind, fn in constraints_of(problem)
        ],
        **LIMITS,
    )
    return np.array(v.value), result


def in_numpy(fn):
    """A compiled function, as SciPy takes it."""
    compiled = jax.jit(fn)
    return lambda theta: np.array(compiled(theta))


def plain(problem):
    """SciPy's SLSQP without kormos: the point and its evaluations."""
    theta = np.array(problem.y0, "float64").ravel()
    limits = limits_of(problem, theta)
    value = jax.jit(
        jax.value_and_grad(lambda t: problem.objective(t, problem.args))
    )
    calls = []

    def value_and_grad(point):
        calls.append(1)
        loss, grad = value(point)
        return float(loss), np.array(grad)

    found = scipy.optimize.minimize(
        value_and_grad,
        theta if limits is None else np.clip(theta, *limits),
        jac=True,
        method="SLSQP",
        bounds=None if limits is None else np.transpose(limits),
        constraints=[
            {
                "type": kind,
                "fun": in_numpy(fn),
                "jac": in_numpy(jax.jacobian(fn)),
            }
            for kind, fn in constraints_of(problem)
        ],
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    return found.x, len(calls)


def violation(problem, theta):
    """The largest violation of a constraint at a point."""
    worst = 0.0
    for kind, fn in constraints_of(problem):
        values = np.array(fn(theta))
        values = np.abs(values) if kind == "eq" else -values
        worst = max(worst, float(values.max(initial=0.0)))
    return worst


def is_solved(problem, theta, best):
    """Whether a point is feasible and as low as the best known."""
    loss = float(problem.objective(theta, problem.args))
    near = loss - best <= NEAR * max(1.0, abs(best))
    return bool(near and violation(problem, theta) <= FEASIBLE)


def main():
    args = recording.parser(__doc__).parse_args()
    kormos.enable_float64()
    warnings.simplefilter("ignore")
    record = recording.Record("constrained", __doc__, args)
    problems = list(table())
    problems = problems[::6] if args.quick else problems
    columns = ["problem", *METHODS, "SciPy's SLSQP"]
    rows, solved, evaluations = [], {}, {}
    for name, problem, best in problems:
        row = [name]
        for method in METHODS:
            theta, result = minimized(problem, method)
            good = is_solved(problem, theta, best)
            solved[name, method] = good
            evaluations[name, method] = result.evaluations
            solved[name, method, "claims"] = result.success
            sign = "" if good else " (no)" if result.success else " (–)"
            row.append(f"{result.evaluations}{sign}")
        theta, count = plain(problem)
        solved[name, "plain"] = is_solved(problem, theta, best)
        evaluations[name, "plain"] = count
        row.append(f"{count}{'' if solved[name, 'plain'] else ' (no)'}")
        rows.append(row)
    record.table(
        "Evaluations",
        columns,
        rows,
        "(no): the method claims success at another end; (–): it claims none.",
    )
    summary = []
    for method in (*METHODS, "plain"):
        ratios = [
            evaluations[name, method] / evaluations[name, "plain"]
            for name, *_ in problems
            if solved[name, method] and solved[name, "plain"]
        ]
        summary.append(
            [
                "SciPy's SLSQP" if method == "plain" else method,
                sum(solved[name, method] for name, *_ in problems),
                len(problems),
                float(np.median(ratios)),
                sum(ratio > 3 for ratio in ratios),
            ]
        )
    record.table(
        "Methods",
        ["method", "solved", "of", "evaluations", "above 3"],
        summary,
        "Evaluations are the median over those of SciPy's SLSQP where both "
        "solve a problem; the last column counts those above three times.",
    )


if __name__ == "__main__":
    main()
