"""What `optimizer="auto"` chooses, compared with every method by name.

Each problem is solved from the same start by `"auto"` and by the methods that
suit it, in turn and in one process. The loss to reach is the hardest one of the
problem. It is a part of the way from the start down to the lowest loss that any
of the methods found (1e-8 for functions, 1e-3 to 1e-5 for models), or an
absolute loss for networks that can fit their data. Seconds are processor time,
so that other work on the machine does not matter. They are medians of several
whole calls, after one that compiled; those of `"auto"` include its choice. The
order of the methods changes from one round to the next, because a call is
faster after one that ran the same code. A method that misses the loss counts as
infinitely slow.
"""

import one_thread  # noqa: F401

# isort: split
import itertools
import math
import random
import statistics
import sys
import time
import warnings
from typing import NamedTuple

import numpy as np
import recording
from auto_cases import of_functions
from auto_cases import of_models
from auto_cases import of_residuals

import kormos

AUTO = "auto"
# Each method is timed at most this often, and not again once its runs have
# taken this many seconds.
REPEATS, ENOUGH = 9, 1.0
# A choice counts as right if it takes at most this many times the best method's
# seconds.
FACTOR = 1.5
# Methods that keep a matrix only take part up to this many parameters.
MOST_DENSE = {"ssbroyden": 6_000, "dense-bfgs": 2_000, "lm": 6_000}


class Outcome(NamedTuple):
    """The seconds of all methods for a case.

    Attributes:
        group: see `Case`.
        name: see `Case`.
        size: see `Case`.
        chosen: the stages that `"auto"` chose.
        seconds: dict from a method, `"auto"` among them, to its seconds.
    """

    group: str
    name: str
    size: int
    chosen: str
    seconds: dict[str, float]

    @property
    def best(self) -> str:
        """The fastest of the methods by name."""
        own = {m: s for m, s in self.seconds.items() if m != AUTO}
        return min(own, key=own.__getitem__)

    @property
    def factor(self) -> float:
        """The seconds of `"auto"`, divided by those of the best method."""
        return self.seconds[AUTO] / self.seconds[self.best]

    def row(self):
        own = self.seconds[AUTO], self.seconds[self.best]
        name = f"{self.name}: {self.size:,}"
        return [name, self.chosen, own[0], self.best, own[1], self.factor]


def solved(case):
    """The `Outcome` of a case, or `None` if no method reaches the loss."""
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
        random.shuffle(able)
        for method in able:
            if sum(found[method]) >= ENOUGH:
                continue
            case.begin()
            began = time.process_time()
            result = case.run(method, target, case.most)
            # The first run may compile for a target.
            if repeat and result.loss <= target:
                found[method].append(time.process_time() - began)
    seconds = dict.fromkeys(methods, math.inf)
    for method, times in found.items():
        seconds[method] = statistics.median(times) if times else math.inf
    outcome = Outcome(case.group, case.name, case.size, chosen, seconds)
    print(*outcome.row(), file=sys.stderr, flush=True)
    return outcome


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--group", choices=["minimize", "least_squares", "fit"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    random.seed(0)
    record = recording.Record("auto", __doc__, args)
    groups = {"minimize": of_functions, "least_squares": of_residuals}
    step = 8 if args.quick else 1
    outcomes = []
    with kormos.precision("float64"):
        for group in groups:
            if args.group in (None, group):
                # What was compiled for a case is freed with the case.
                cases = itertools.islice(groups[group](), 0, None, step)
                outcomes += map(solved, cases)
    if args.group in (None, "fit"):
        for dtype, make in itertools.islice(of_models(), 0, None, step):
            with kormos.precision(dtype):
                outcomes.append(solved(make()))
    tabulate(record, [o for o in outcomes if o is not None])


def tabulate(record, outcomes):
    columns = "problem", "chosen", "its seconds", "the best", "its seconds"
    rows = []
    for group in dict.fromkeys(o.group for o in outcomes):
        own = [o for o in outcomes if o.group == group]
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
