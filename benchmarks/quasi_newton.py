"""Quasi-Newton methods: evaluations and seconds until a loss is reached.

The benchmark compares kormos' L-BFGS with that of other libraries: with the
same data, starts and precision of the model, solver arithmetic in float64, one
thread and no tolerances. A run ends when it reaches a loss, or after a limit of
evaluations. The losses to reach are absolute for networks that can fit their
data. Otherwise they are fractions of the distance from the loss at the start to
the lowest loss that any of the methods found.

Evaluations are counted in separate runs, and include the trial points of line
searches. Seconds are medians over the starts, and over fifteen runs that
alternate (fewer if those took 0.6 s), after a run that compiled. The spread is
the difference of the longest and the shortest time, divided by the median. For
kormos, the time is that of a whole call of `kormos.fit`. For optax, jaxopt,
optimistix and TensorFlow Probability it is that of compiled loops that end at
the target. PyTorch's optimizer runs on the model's own parameters, and SciPy's
methods with the gradient that kormos compiled.
"""

import one_thread  # noqa: F401

# isort: split
import math
import statistics
import sys
import time
import warnings

import keras
import numpy as np
import peers
import problems
import recording

import kormos
from kormos.optimizers import BFGS
from kormos.optimizers import LBFGS
from kormos.optimizers import SSBroyden

FUNCTIONS = """Test functions of few parameters: evaluations.

Every fourth of the functions of Moré, Garbow and Hillstrom (ACM TOMS 7(1),
1981) is minimized from its standard start, in float64, and evaluations are
counted as above. Seconds are not compared: a run takes only milliseconds, most
of which are the overhead of calls. The losses to reach are 1e-2, 1e-5 and 1e-8
of the distance from the loss at the start to the lowest loss that any method
found.
"""
# Each method is timed at most this often, and not again once its runs have
# taken this many seconds.
REPEATS = 15
ENOUGH = 0.6
FAR = 1e300
OURS = {
    "kormos lbfgs": LBFGS,
    "kormos ssbroyden": SSBroyden,
    "kormos dense-bfgs": BFGS,
}
MOST_PARAMETERS = {"kormos ssbroyden": 1_000, "kormos dense-bfgs": 100}


class Ours:
    """A method of kormos on a problem, from its variables' present values."""

    def __init__(self, problem, make):
        self._problem, self._optimizer = problem, make()

    def losses(self, most, target):
        rows = self.run(None, most, target)
        losses = np.full(rows["fg_evals"][-1], np.inf)
        losses[np.array(rows["fg_evals"]) - 1] = rows["loss"]
        return losses

    def run(self, theta, most, target):
        del theta
        return self._problem.ours(self._optimizer, most, target).history


class Theirs:
    """A method of another library on a problem."""

    def __init__(self, problem, make):
        self._problem, self._noted = problem, []
        self.run = make(peers.Evaluate(problem))
        self._counted = make(peers.Evaluate(problem, self._note))

    def losses(self, most, target):
        self._noted.clear()
        theta = self._problem.objective.initial_position()
        self._counted(theta, most, target)
        return np.array(self._noted[:most])

    def _note(self, loss):
        # If the loss and the gradient of a point are requested separately, they
        # count as one evaluation.
        if not self._noted or loss != self._noted[-1]:
            self._noted.append(loss)


def methods_for(problem):
    """Dict from a name to a method that takes the problem."""
    size = problem.objective.size
    methods = {
        name: Ours(problem, make)
        for name, make in OURS.items()
        if size <= MOST_PARAMETERS.get(name, math.inf)
    }
    others, missing = peers.available(size)
    if missing:
        print(f"Not installed, left out: {', '.join(missing)}.")
    methods |= {name: Theirs(problem, make) for name, make in others.items()}
    return methods


def evaluations_until(losses, target):
    """The evaluations, counted from one, until the target."""
    reached = np.flatnonzero(np.asarray(losses) <= target)
    return int(reached[0]) + 1 if len(reached) else math.inf


def goals(problem, theta, losses):
    """The losses to reach."""
    if not problem.is_relative:
        return problem.targets
    first = problem.objective.value(theta)
    lowest = min(found.min(initial=first) for found in losses.values())
    # For a compiled function of a float, a NumPy scalar would be another type.
    return [float(lowest + part * (first - lowest)) for part in problem.targets]


def last_goal(problem, theta):
    """The loss at which a counted run may end."""
    least = min(problem.targets)
    if not problem.is_relative or math.isinf(problem.lowest):
        return problem.lowest if problem.is_relative else least
    first = problem.objective.value(theta)
    return problem.lowest + least / 10 * (first - problem.lowest)


def timed(problem, method, theta, most, target):
    # A fit begins at the values of the user's variables.
    problem.objective.assign(theta)
    begin = time.perf_counter()
    method.run(theta, most, target)
    return time.perf_counter() - begin


def seconds_until(problem, methods, counts, theta, target):
    """Dict from a name to the seconds of runs to the target."""
    able = [name for name in methods if counts[name] < math.inf]
    found = {name: [] for name in able}
    for _ in range(REPEATS):
        for name in able:
            # Long runs vary little, and would take most of the time.
            if sum(found[name]) < ENOUGH:
                seconds = timed(
                    problem, methods[name], theta, problem.most, target
                )
                found[name].append(seconds)
    return found


class Study:
    """Runs of every method on problems, for tables and profiles.

    Attributes:
        evaluations, seconds: dicts from `(problem, seed, target)` to a dict
            from a method's name to its evaluations or seconds.
    """

    def __init__(self, record, seeds):
        self._record, self._seeds = record, seeds
        self.evaluations, self.seconds, self._spreads = {}, {}, {}

    def solve(self, problem, is_timed=True):
        """Runs all methods from all starts, and tabulates the problem."""
        methods, compiled = methods_for(problem), {}
        seeds = range(min(self._seeds, problem.seeds))
        for seed in seeds:
            theta = problem.start(seed)
            if is_timed and seed == 0:
                for name, method in methods.items():
                    compiled[name] = timed(problem, method, theta, 2, -math.inf)
            end = last_goal(problem, theta)
            losses = {}
            for name, method in methods.items():
                problem.objective.assign(theta)
                losses[name] = method.losses(problem.most, end)
                text = f"{problem.name}, {seed}: {name}, {len(losses[name])}"
                lowest = losses[name].min(initial=math.inf)
                print(f"{text} evaluations, {lowest:.3e}", file=sys.stderr)
            targets = goals(problem, theta, losses)
            for i, target in enumerate(targets):
                counts = {
                    name: evaluations_until(found, target)
                    for name, found in losses.items()
                }
                key = problem.name, seed, i
                self.evaluations[key] = counts
                if is_timed:
                    found = seconds_until(
                        problem, methods, counts, theta, target
                    )
                    self.seconds[key], self._spreads[key] = (
                        {name: of(times) for name, times in found.items()}
                        for of in (statistics.median, recording.spread)
                    )
        if is_timed:
            self._tabulate(problem, methods, compiled, len(seeds))

    def _tabulate(self, problem, methods, compiled, seeds):
        rows = []
        count = len(problem.targets)
        for name in methods:
            row = [name]
            for outcomes in (self.evaluations, self.seconds):
                for i in range(count):
                    keys = [(problem.name, seed, i) for seed in range(seeds)]
                    found = [outcomes[key].get(name, math.inf) for key in keys]
                    row.append(statistics.median(found))
            spreads = [
                self._spreads[problem.name, seed, i].get(name, math.nan)
                for seed in range(seeds)
                for i in range(count)
            ]
            rows.append([*row, float(np.nanmedian(spreads)), compiled[name]])
        goals = [f"{target:g}" for target in problem.targets]
        columns = [
            "method",
            *(f"evaluations to {goal}" for goal in goals),
            *(f"seconds to {goal}" for goal in goals),
            "spread",
            "seconds of the first call",
        ]
        kind = " of the way left" if problem.is_relative else ""
        self._record.table(
            f"{problem.name}: {problem.objective.size:,} parameters",
            columns,
            rows,
            f"Medians of {seeds} starts; losses to reach: "
            f"{', '.join(goals)}{kind}. A dash: not reached within "
            f"{problem.most:,} evaluations.",
        )


def profile(outcomes):
    """Dolan and Moré's performance profile, Math. Program. 91, 2002.

    Args:
        outcomes: dict from a problem to a dict from a method to its cost.

    Returns:
        Dict from a method to a pair of lists: factors of the best cost, and
        the part of the problems that it solves within them.
    """
    names = {name for costs in outcomes.values() for name in costs}
    solved = [c for c in outcomes.values() if min(c.values()) < math.inf]
    curves = {}
    for name in sorted(names):
        ratios = [
            costs.get(name, math.inf) / min(costs.values()) for costs in solved
        ]
        ratios = sorted(r for r in ratios if r < math.inf)
        parts = [(i + 1) / len(solved) for i in range(len(ratios))]
        curves[name] = [1.0, *ratios], [0.0, *parts]
    return curves


def standing(record, title, axis, outcomes):
    """Tabulates how often each method is the best, or nearly the best."""
    solved = [c for c in outcomes.values() if min(c.values()) < math.inf]
    rows = []
    for name in {name for costs in solved for name in costs}:
        ratios = np.array(
            [c.get(name, math.inf) / min(c.values()) for c in solved]
        )
        parts = [np.mean(ratios <= f) for f in (1, 1.05, 1.2, 2, FAR)]
        rows.append([name, *parts, ratios.max()])
    rows.sort(key=lambda row: row[1:], reverse=True)
    record.table(
        title,
        ["method", "best", "within 1.05", "1.2", "2", "reached", "worst"],
        [[n, *(f"{100 * p:.0f} %" for p in parts), w] for n, *parts, w in rows],
        f"The share of {len(solved)} cases (a problem, a start and a loss to "
        "reach) in which a method has the lowest cost, or a cost within that "
        "factor of the lowest. `worst` is its largest factor. A method that "
        "does not take part in a problem reaches none of its losses.",
    )
    record.curves(
        f"Performance profile: {title.lower()}",
        axis,
        "part of the cases",
        profile(outcomes),
        yscale="linear",
        drawstyle="steps-post",
        xlim=(1, 20),
    )


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--problem", nargs="+", choices=problems.PROBLEMS)
    parser.add_argument("--functions", action="store_true", help="the test set")
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    backend = keras.backend.backend()
    seeds = args.seeds or (1 if args.quick else 3)
    if args.functions:
        record = recording.Record(f"functions-{backend}", FUNCTIONS, args)
        study = Study(record, 1)
        with kormos.precision("float64"):
            for problem in problems.functions()[:: 32 if args.quick else 4]:
                study.solve(problem, is_timed=False)
    else:
        record = recording.Record(f"quasi-newton-{backend}", __doc__, args)
        study = Study(record, seeds)
        names = args.problem or list(problems.PROBLEMS)
        for name in names[: 1 if args.quick else None]:
            make, dtypes = problems.PROBLEMS[name]
            for dtype in dtypes[: 1 if args.quick else None]:
                with kormos.precision(dtype):
                    study.solve(make(dtype))
        standing(record, "Seconds", "factor of the fastest", study.seconds)
    standing(record, "Evaluations", "factor of the fewest", study.evaluations)


if __name__ == "__main__":
    main()
