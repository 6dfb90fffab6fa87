"""Claims: does a success hold against a fresh run, and is the problem solved?

Every problem is minimized by every method, from its standard start, within
10,000 evaluations and a minute. It is solved where the loss comes within 1e-6
of the way from the start to the best value known. A success is a claim, and it
is tried: a fresh run of the same method and one of another (`lm` where there
are residuals, else `dense-bfgs`) begin at its end, with 2,000 evaluations each.
A claim is false where one of them lowers the loss by more than 1e-6 of itself,
by more than its rounding there, which is measured at points a few units in the
last place away, and by more than 2^-104 of the loss at the start, which is zero
to a sum of squares. It is far where the gain is more than 2^-52 of that, too.
How the fresh run of the same method ends is the second fit.

`--part` says what is minimized: `cutest`, unconstrained problems of CUTEst, on
PyTorch (`lm`, and all methods on JAX if need be, with `KERAS_BACKEND=jax`);
`mgh`, the functions of Moré, Garbow and Hillstrom; `nist`, the nonlinear
regressions of the NIST StRD from both starts; `networks`, small ones in many
units; `float32`, fits that are right and fits that are cut short.
"""

import os

# Where kormos compiles nothing, so that a problem costs its evaluations alone.
os.environ.setdefault("KERAS_BACKEND", "torch")

import one_thread  # noqa: F401

# isort: split
import dataclasses
import math
import pathlib
import statistics
import sys
import time
import warnings

import numpy as np
import recording

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests"))

import trials

PARTS = ("cutest", "mgh", "nist", "networks", "float32")
OURS = ("lbfgs", "ssbroyden", "dense-bfgs", "ssbfgs")

# How near the best value is near enough, as a part of the way from the start.
NEAR = 1e-6
RUN = {"max_iterations": 10**6, "max_evals": 10_000, "max_seconds": 60}
TRIAL = {"max_iterations": 10**6, "max_evals": 2_000, "max_seconds": 60}
QUICK = 12

COLUMNS = [
    "problem",
    "status",
    "success",
    "loss",
    "evaluations",
    "to solve",
    "Hessian products",
    "gain, same method",
    "gain, other method",
    "allowed gain",
    "false",
    "second fit",
    "its success",
    "its evaluations",
    "message",
]
SUMMARY = [
    "method",
    "solved",
    "median evaluations to solve",
    "successes",
    "false claims",
    "far",
    "second fits without success",
    "beyond 10 evaluations",
    "beyond 20",
    "seconds",
]


@dataclasses.dataclass
class Fit:
    """One run, and what trials of its end found.

    Attributes:
        case: the problem's name.
        has_best: whether its best value is known.
        solved: the evaluations until it was near that, or infinity.
        same, other: what fresh runs lowered the loss by, or NaN.
        allowed: what they may.
        second: the `Result` of the fresh run of the same method, or `None`.
    """

    case: str
    has_best: bool
    status: str
    success: bool = False
    first: float = math.nan
    loss: float = math.nan
    evaluations: int = 0
    products: int = 0
    seconds: float = 0.0
    message: str = ""
    solved: float = math.inf
    same: float = math.nan
    other: float = math.nan
    allowed: float = math.nan
    second: object = None

    @property
    def gain(self):
        return max(self.same, self.other)

    @property
    def is_false(self):
        # Beside a success, a gain that is not a number is no proof.
        return self.success and not self.gain <= self.allowed

    @property
    def is_far(self):
        least = 2.0**-52 * abs(self.first)
        return self.is_false and not self.gain <= least

    def row(self):
        second = self.second
        return [
            self.case,
            self.status,
            str(self.success),
            f"{self.loss:.12g}",
            self.evaluations,
            self.solved,
            self.products,
            f"{self.same:.3g}",
            f"{self.other:.3g}",
            f"{self.allowed:.3g}",
            "far" if self.is_far else "false" if self.is_false else "",
            second.status if second else "",
            str(second.success) if second else "",
            second.evaluations if second else "",
            self.message.replace("|", "/"),
        ]


def run(case, method):
    """Runs a method from the standard start, and tries its claim."""
    fit = Fit(case.name, not math.isnan(case.best), "raised")
    losses = []
    begin = time.perf_counter()
    try:
        result, end = case.fit(method, case.start, losses, **RUN)
    except Exception as error:
        # That of one method on one problem is a finding, like a status.
        fit.message = f"{type(error).__name__}: {error}".splitlines()[0]
        return fit
    fit.seconds = time.perf_counter() - begin
    fit.status, fit.success = result.status, result.success
    fit.first, fit.loss = result.initial_loss, result.loss
    fit.evaluations = result.evaluations
    fit.products = result.hessian_products
    fit.message = result.message
    fit.solved = evaluations_to_solve(case, result, losses)
    if fit.success:
        attempt(case, method, fit, end)
    return fit


def evaluations_to_solve(case, result, losses):
    """Evaluations until the loss was near the best value, or infinity."""
    first = result.initial_loss
    goal = case.best + NEAR * (first - case.best)
    counts = range(1, len(losses) + 1)
    if not losses:
        # Of accepted iterates alone.
        losses = [first, *result.history["loss"]]
        counts = [1, *result.history["fg_evals"]]
    reached = np.flatnonzero(np.array(losses) <= goal)
    return counts[reached[0]] if len(reached) else math.inf


def attempt(case, method, fit, end):
    """Tries a claim from its end."""
    before = case.value(end)
    rounding = case.rounding(end)
    fit.allowed = trials.gain_allowed(before, rounding, fit.first)
    fit.second, after = case.fit(method, end, **TRIAL)
    fit.same = fit.other = before - case.value(after)
    another = "lm" if case.has_residuals else "dense-bfgs"
    if another != method:
        _, after = case.fit(another, end, **TRIAL)
        fit.other = before - case.value(after)


def describe(method, fit):
    """A line about a run."""
    text = (
        f"{method}, {fit.case}: {fit.status}, {fit.loss:.9g}, "
        f"{fit.evaluations} evaluations, {fit.solved} to solve, "
        f"{fit.seconds:.1f} s"
    )
    if fit.is_false:
        text += f"; FALSE: gained {fit.gain:.3g}, allowed {fit.allowed:.3g}"
    if fit.second is not None:
        text += f"; second {fit.second.status}, {fit.second.evaluations}"
    return text


def summary(method, fits):
    known = [f.solved for f in fits if f.has_best]
    claims = [f for f in fits if f.success]
    seconds = [f.second for f in claims]
    counts = [s.evaluations for s in seconds]
    return [
        method,
        f"{sum(n < math.inf for n in known)}/{len(known)}",
        statistics.median(known) if known else math.nan,
        len(claims),
        sum(f.is_false for f in claims),
        sum(f.is_far for f in claims),
        sum(not s.success for s in seconds),
        sum(n > 10 for n in counts),
        sum(n > 20 for n in counts),
        sum(f.seconds for f in fits),
    ]


def names(method, fits):
    """By name: what was not solved, and which claims are false."""
    unsolved = [f for f in fits if f.has_best and f.solved == math.inf]
    return [
        method,
        ", ".join(f"{f.case} ({f.status})" for f in unsolved),
        ", ".join(f.case + " (far)" * f.is_far for f in fits if f.is_false),
    ]


def campaign(record, part, cases, methods):
    """Runs methods on problems, and tabulates."""
    found = {}
    for method in methods:
        fits = found[method] = []
        for case in cases:
            if method == "lm" and not case.has_residuals:
                continue
            fits.append(run(case, method))
            print(describe(method, fits[-1]), file=sys.stderr, flush=True)
        rows = [fit.row() for fit in fits]
        record.table(f"{part}: {method}", COLUMNS, rows)
    rows = [summary(method, fits) for method, fits in found.items()]
    record.table(f"{part}: methods", SUMMARY, rows)
    columns = ["method", "not solved", "false claims"]
    rows = [names(method, fits) for method, fits in found.items()]
    record.table(f"{part}: by name", columns, rows)


def cases_of(part):
    if part == "cutest":
        import cutest

        return cutest.cases()
    import claim_cases

    return getattr(claim_cases, f"{part}_cases")()


def main():
    parser = recording.parser(__doc__)
    parser.add_argument("--part", choices=PARTS, default="cutest")
    parser.add_argument("--methods", nargs="+", default=OURS)
    parser.add_argument("--problems", nargs="+", help="their names")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    record = recording.Record(f"claims-{args.part}", __doc__, args)
    if args.part == "float32":
        import float32_fits

        float32_fits.study(record, args.methods, args.quick)
        return
    cases = cases_of(args.part)
    if args.problems:
        cases = [case for case in cases if case.name in args.problems]
    step = max(1, len(cases) // QUICK) if args.quick else 1
    campaign(record, args.part, cases[::step], args.methods)


if __name__ == "__main__":
    main()
