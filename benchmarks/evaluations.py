"""Evaluations of loss and gradient until a loss is first reached.

kormos' L-BFGS against that of other libraries: the same data, start and
precision, on one thread. Evaluations of a peer are counted around the loss, at
every trial of its line searches; those of kormos are `fg_evals`, at accepted
points only. The table gives medians over the seeds: evaluations to each
target, a dash where half of the runs did not get there; the lowest loss after
so many evaluations; and seconds. The first run of ours compiles, and every run
of optax and jaxopt does; the others take the loss that ours compiled.

    KERAS_BACKEND=jax python benchmarks/evaluations.py --problem grid digits

`problems.py` says what is minimized, `peers.py` how the peers are called.
TensorFlow Probability takes part with KERAS_BACKEND=tensorflow, optax and
jaxopt (where it is installed) with KERAS_BACKEND=jax.
"""

import one_thread  # noqa: F401

# isort: split
import argparse
import math
import statistics
import sys
import time
import warnings
from typing import NamedTuple

import keras
import peers
from problems import PROBLEMS

import kormos
from kormos.optimizers import BFGS
from kormos.optimizers import LBFGS
from kormos.optimizers import SSBFGS
from kormos.optimizers import SSBroyden

OURS = {
    "lbfgs": {},
    "LBFGS, 50 pairs": {"memory": 50},
    "LBFGS, 20 pairs": {"memory": 20},
    "LBFGS, 10 pairs": {"memory": 10},
    "LBFGS, 100 pairs, usual": {"memory": 100, "scaling": "usual"},
    "LBFGS, 50 pairs, usual": {"memory": 50, "scaling": "usual"},
}
DENSE = {"SSBroyden": SSBroyden, "SSBFGS": SSBFGS, "BFGS": BFGS}


class Trace(NamedTuple):
    """What a run found.

    Attributes:
        evaluations: counts, ascending.
        losses: the loss found at each.
        seconds: what the run took.
    """

    evaluations: list
    losses: list
    seconds: float

    def until(self, target):
        pairs = zip(self.evaluations, self.losses, strict=True)
        return next((n for n, loss in pairs if loss <= target), math.inf)

    def lowest(self, evaluations=math.inf):
        pairs = zip(self.evaluations, self.losses, strict=True)
        return min((v for n, v in pairs if n <= evaluations), default=math.inf)


def run_ours(problem, optimizer, theta, target):
    problem.objective.assign(theta)
    begin = time.perf_counter()
    history = problem.ours(optimizer, problem.marks[-1], target)
    seconds = time.perf_counter() - begin
    return Trace(history["fg_evals"], history["loss"], seconds)


def run_peer(problem, peer, theta, target):
    counter = peers.Counter(problem.objective, problem.marks[-1], target)
    seconds = peers.run(*peer, counter, theta)
    losses = counter.losses[: problem.marks[-1]]
    return Trace(list(range(1, len(losses) + 1)), losses, seconds)


def methods_for(name, quick):
    """Dict from a method's name to `(problem, theta, target) -> Trace`."""

    def ours(make, **arguments):
        return lambda p, *rest: run_ours(p, make(**arguments), *rest)

    def theirs(peer):
        return lambda p, *rest: run_peer(p, peer, *rest)

    methods = {}
    if name == "burgers":
        methods = {key: ours(make) for key, make in DENSE.items()}
        methods["lbfgs"] = ours(LBFGS)
    else:
        for key, arguments in OURS.items():
            methods[key] = ours(LBFGS, **arguments)
    others, missing = peers.available()
    for key, peer in others.items():
        if name != "burgers" or key == "SciPy L-BFGS-B, 50 pairs":
            methods[key] = theirs(peer)
    if missing:
        print(f"\nNot installed, left out: {', '.join(missing)}.")
    if quick:
        kept = ("SSBroyden", "lbfgs", "SciPy L-BFGS-B, 50 pairs")
        methods = {k: v for k, v in methods.items() if k in kept}
    return methods


def measure(problem, methods, seeds):
    """Runs of every method: dict to a list of traces and their targets."""
    traces = {name: [] for name in methods}
    goal = -math.inf if problem.is_relative else min(problem.targets)
    if len(problem.marks) > 1:
        # The loss at each mark is wanted too.
        goal = -math.inf
    targets = []
    for seed in range(min(seeds, problem.seeds)):
        theta = problem.start(seed)
        for name, method in methods.items():
            traces[name].append(method(problem, theta, goal))
            print(
                f"{problem.name}, {seed}: {name}, "
                f"{traces[name][-1].lowest():.3e}",
                file=sys.stderr,
            )
        if problem.is_relative:
            lowest = min(runs[-1].lowest() for runs in traces.values())
            targets.append([lowest * (1 + t) for t in problem.targets])
        else:
            targets.append(problem.targets)
    return traces, targets


def cells(problem, runs, targets):
    for i in range(len(problem.targets)):
        count = statistics.median(
            run.until(goals[i])
            for run, goals in zip(runs, targets, strict=True)
        )
        yield "–" if math.isinf(count) else f"{count:,.0f}"
    for mark in problem.marks:
        yield f"{statistics.median(run.lowest(mark) for run in runs):.3g}"
    yield f"{statistics.median(run.seconds for run in runs):.1f}"


def report(problem, methods, seeds):
    traces, targets = measure(problem, methods, seeds)
    unit = " above the lowest" if problem.is_relative else ""
    columns = [
        "method",
        *(f"to {target:g}{unit}" for target in problem.targets),
        *(f"loss at {mark:,}" for mark in problem.marks),
        "seconds",
    ]
    size, count = problem.objective.size, len(targets)
    print(f"\n{problem.name}: {size:,} parameters, {count} seeds\n")
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for name, runs in traces.items():
        row = " | ".join(cells(problem, runs, targets))
        print(f"| {name} | {row} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, fewest methods"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", kormos.ConvergenceWarning)
    print(f"{keras.backend.backend()}, Keras {keras.__version__}, one thread")
    for name in arguments.problem or PROBLEMS:
        make, dtypes = PROBLEMS[name]
        methods = methods_for(name, arguments.quick)
        seeds = 3 if name == "burgers" else 5
        seeds = arguments.seeds or (1 if arguments.quick else seeds)
        for dtype in dtypes:
            with kormos.precision(dtype):
                report(make(dtype), methods, seeds)


if __name__ == "__main__":
    main()
