"""What `optimizer="auto"` chooses, beside every method by name.

Each problem is solved from the same start by `"auto"` and by the methods that
suit it, alternately in one process. The loss to reach is the hardest of the
problem's: a part of the way from the start down to the lowest loss that any of
the methods found (1e-8 for functions, 1e-3 to 1e-5 for models), or an absolute
one for networks that can fit their data. Seconds are those of whole calls after
one that compiled, medians of several; those of `"auto"` contain its choice. A
method that misses the loss counts as infinitely slow.

`minimize`: test functions of Moré, Garbow and Hillstrom (ACM TOMS 7(1), 1981).

`least_squares`: the same functions as residuals, and NIST's regressions from
both of their starts.

`fit`: the models of `problems.py`; sin(10 x) / (10 x) by a network 1-20-1 on
2,000 rows; and a likelihood of counts by 20 weights, on 5,000 rows.
"""

import one_thread  # noqa: F401

# isort: split
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import problems
import recording

import kormos

sys.path.append(str(problems.ROOT / "tests" / "helpers"))
import mgh
import nist

AUTO = "auto"
OF_FUNCTIONS = "lbfgs", "ssbroyden", "dense-bfgs", "l-bfgs-b", "bfgs"
OF_RESIDUALS = "lm", "lbfgs", "ssbroyden", "l-bfgs-b"
OF_MODELS = "lm", "lbfgs", "ssbroyden", "newton-cg", "l-bfgs-b"
# Each method is timed at most this often, and not again once its runs have
# taken this many seconds.
REPEATS, ENOUGH = 9, 1.0
# Within this factor of the best method's seconds a choice counts as right.
FACTOR = 1.5
# A method that keeps a matrix takes part up to this many parameters.
MOST_DENSE = {"ssbroyden": 6_000, "dense-bfgs": 2_000, "lm": 6_000}


class Case(NamedTuple):
    """A problem, with a start, that methods solve.

    Attributes:
        group: the function of kormos that solves it.
        name: what the table calls it.
        methods: the methods beside `"auto"`.
        size: the number of parameters.
        begin: sets the variables to the start.
        run: function `(method, target, most)`: solves it until the loss or so
            many evaluations, and returns the `Result`.
        part: the part of the way that is left at the loss to reach.
        target: the loss to reach, if it is absolute.
        most: the evaluations after which a run ends.
    """

    group: str
    name: str
    methods: tuple[str, ...]
    size: int
    begin: Callable[[], object]
    run: Callable[[str, float | None, int], Any]
    part: float = 1e-8
    target: float | None = None
    most: int = 500


def of_variable(group, name, fn, start, methods, solve):
    """A case of a function of one variable."""
    start = np.array(start, dtype="float64")
    variable = keras.Variable(start, dtype="float64")

    def loss():
        return fn(variable)

    def run(method, target, most):
        return solve(
            loss,
            [variable],
            method,
            max_iterations=most,
            max_evals=most,
            target_loss=target,
        )

    return Case(
        group,
        name,
        methods,
        start.size,
        lambda: variable.assign(start),
        run,
    )


def of_functions():
    for p in mgh.problems():
        yield of_variable(
            "minimize", p.name, p.loss, p.x0, OF_FUNCTIONS, kormos.minimize
        )


def of_residuals():
    for p in mgh.problems():
        yield of_variable(
            "least_squares",
            p.name,
            p.residuals,
            p.x0,
            OF_RESIDUALS,
            kormos.least_squares,
        )
    for p in nist.problems():
        for number, start in enumerate(p.starts, 1):
            yield of_variable(
                "least_squares",
                f"{p.name}, start {number}",
                p.residuals,
                start,
                OF_RESIDUALS,
                kormos.least_squares,
            )


def of_model(name, model, x, y, start, **fields):
    """A case of a compiled model."""

    def run(method, target, most):
        return kormos.fit(
            model,
            x,
            y,
            batch_size=len(y),
            optimizer=method,
            epochs=most,
            max_evals=most,
            target_loss=target,
            verbose=0,
        ).result

    weights = model.get_weights() if start is None else start
    return Case(
        "fit",
        name,
        OF_MODELS,
        model.count_params(),
        lambda: model.set_weights(weights),
        run,
        **fields,
    )


def of_problem(problem):
    """A case of `problems.py`."""
    theta = problem.start(0)

    def run(method, target, most):
        target = -math.inf if target is None else target
        return problem.ours(method, most, target)

    least = min(problem.targets)
    return Case(
        "fit",
        problem.name,
        OF_MODELS,
        problem.objective.size,
        lambda: problem.objective.assign(theta),
        run,
        part=least,
        target=None if problem.is_relative else least,
        most=problem.most,
    )


def sinc():
    x = np.linspace(-1, 1, 2_000)[:, None]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(20, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    y = np.sinc(10 * x / np.pi)
    return of_model("sinc, float64", model, x, y, None, part=1e-5)


def counts():
    rng = np.random.RandomState(0)
    x = rng.normal(size=(5_000, 20))
    y = rng.poisson(np.exp(x @ rng.normal(size=(20, 1)) / 5))
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(1, activation="exponential")]
    )
    model.compile(loss="poisson")
    start = [np.zeros((20, 1)), np.zeros(1)]
    return of_model("counts, float64", model, x, y * 1.0, start, part=1e-5)


def of_models():
    """Yields pairs of a dtype and a function that makes a case in it."""
    for make, dtypes in problems.PROBLEMS.values():
        for dtype in dtypes:
            yield dtype, lambda m=make, d=dtype: of_problem(m(d))
    yield "float64", sinc
    yield "float64", counts


class Outcome(NamedTuple):
    """What methods took for a case.

    Attributes:
        case: the `Case`.
        chosen: the stages that `"auto"` chose.
        seconds: dict from a method, `"auto"` among them, to its seconds.
    """

    case: Case
    chosen: str
    seconds: dict[str, float]

    @property
    def best(self) -> str:
        """The fastest of the methods by name."""
        own = {m: s for m, s in self.seconds.items() if m != AUTO}
        return min(own, key=own.__getitem__)

    @property
    def factor(self) -> float:
        """The seconds of `"auto"`, of those of the best method."""
        return self.seconds[AUTO] / self.seconds[self.best]

    def row(self):
        own = self.seconds[AUTO], self.seconds[self.best]
        name = f"{self.case.name}: {self.case.size:,}"
        return [name, self.chosen, own[0], self.best, own[1], self.factor]


def solved(case):
    """The `Outcome` of a case, or `None` if no method gets anywhere."""
    methods = [
        m
        for m in (AUTO, *case.methods)
        if case.size <= MOST_DENSE.get(m, math.inf)
    ]
    ends, chosen, first = {}, "", math.nan
    for method in methods:
        case.begin()
        result = case.run(method, case.target, case.most)
        ends[method], first = result.loss, result.initial_loss
        if method == AUTO:
            chosen = result.choice.partition(" was chosen")[0]
    lowest = min(ends.values())
    target = case.target
    if target is None:
        target = float(lowest + case.part * (first - lowest))
    able = [m for m in methods if ends[m] <= target]
    if not set(able) - {AUTO}:
        return None
    found = {m: [] for m in able}
    for repeat in range(REPEATS + 1):
        for method in able:
            if sum(found[method]) >= ENOUGH:
                continue
            case.begin()
            began = time.perf_counter()
            result = case.run(method, target, case.most)
            # The first run may compile for a target.
            if repeat and result.loss <= target:
                found[method].append(time.perf_counter() - began)
    seconds = dict.fromkeys(methods, math.inf)
    for method, times in found.items():
        seconds[method] = statistics.median(times) if times else math.inf
    return Outcome(case, chosen, seconds)


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--group", choices=["minimize", "least_squares", "fit"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    record = recording.Record("auto", __doc__, args)
    groups = {"minimize": of_functions, "least_squares": of_residuals}
    step = 8 if args.quick else 1
    outcomes = []
    with kormos.precision("float64"):
        for group in groups:
            if args.group in (None, group):
                outcomes += map(solved, list(groups[group]())[::step])
    if args.group in (None, "fit"):
        for dtype, make in list(of_models())[::step]:
            with kormos.precision(dtype):
                outcomes.append(solved(make()))
    tabulate(record, [o for o in outcomes if o is not None])


def tabulate(record, outcomes):
    columns = "problem", "chosen", "its seconds", "the best", "its seconds"
    rows = []
    for group in dict.fromkeys(o.case.group for o in outcomes):
        own = [o for o in outcomes if o.case.group == group]
        record.table(f"`{group}`", [*columns, "factor"], [o.row() for o in own])
        rows.append(standing(group, own))
    rows.append(standing("all", outcomes))
    record.table(
        '`"auto"`: how often its choice is nearly the best',
        ["function", "problems", f"within {FACTOR}", "2", "5", "reached"],
        rows,
        "The share of the problems that it solves within that factor of the "
        "fastest method's seconds.",
    )


def standing(name, outcomes):
    factors = np.array([o.factor for o in outcomes])
    parts = [np.mean(factors <= f) for f in (FACTOR, 2, 5, math.inf)]
    parts[-1] = np.mean(np.isfinite(factors))
    return [name, len(outcomes), *(f"{100 * p:.0f} %" for p in parts)]


if __name__ == "__main__":
    main()
