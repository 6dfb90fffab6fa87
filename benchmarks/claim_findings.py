"""The findings of the claim campaign about a run, and their tables."""

import dataclasses
import math
import statistics
from typing import NamedTuple

# A loss below this counts as a minimum of zero, for problems in units near one.
ZERO = 1e-11

COLUMNS = [
    "problem",
    "status",
    "success",
    "loss",
    "evaluations",
    "to solve",
    "Hessian products",
    "gain, same method",
    "gain, dense-bfgs",
    "gain, lm",
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
    "lm gains",
    "second fits without success",
    "beyond 10 evaluations",
    "beyond 20",
    "seconds",
]


class Second(NamedTuple):
    """The end of a fresh run that began at an end."""

    status: str
    success: bool
    evaluations: int


@dataclasses.dataclass
class Fit:
    """One run, and the findings of trials of its end.

    Attributes:
        case: the problem's name.
        has_best: whether its best value is known.
        solved: the evaluations until it was near that, or infinity.
        same, other: the decrease of the loss in fresh runs, or NaN.
        by_lm: likewise, by `lm`.
        allowed: the decrease that is allowed.
        second: the end of the fresh run of the same method, or `None`.
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
    by_lm: float = math.nan
    allowed: float = math.nan
    second: Second | None = None

    @property
    def gain(self):
        gains = [g for g in (self.same, self.other) if not math.isnan(g)]
        return max(gains, default=0.0)

    @property
    def is_false(self):
        return self.success and self.gain > self.allowed

    @property
    def is_far(self):
        return self.is_false and self.gain > ZERO * min(1.0, abs(self.first))

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
            f"{self.by_lm:.3g}",
            f"{self.allowed:.3g}",
            "far" if self.is_far else "false" if self.is_false else "",
            *(map(str, second) if second else ("", "", "")),
            self.message.replace("|", "/"),
        ]


def described(method, fit):
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
        sum(f.by_lm > f.allowed for f in claims),
        sum(not s.success for s in seconds),
        sum(n > 10 for n in counts),
        sum(n > 20 for n in counts),
        sum(f.seconds for f in fits),
    ]


def best_of(found):
    """The row of a summary for the best of the methods on each problem."""
    solved = {}
    for fit in (f for fits in found.values() for f in fits if f.has_best):
        solved[fit.case] = min(fit.solved, solved.get(fit.case, math.inf))
    count = sum(n < math.inf for n in solved.values())
    median = statistics.median(solved.values()) if solved else math.nan
    blanks = [""] * (len(SUMMARY) - 3)
    return ["the best of them", f"{count}/{len(solved)}", median, *blanks]


def names(method, fits):
    """The names of problems that were not solved, or have a false claim."""
    unsolved = [f for f in fits if f.has_best and f.solved == math.inf]
    return [
        method,
        ", ".join(f"{f.case} ({f.status})" for f in unsolved),
        ", ".join(f.case + " (far)" * f.is_far for f in fits if f.is_false),
    ]
