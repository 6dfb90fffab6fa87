"""Whether a point is a minimum of the loss, as far as evaluations can show.

Every method ends by these tests. They look at the point only, never at where
the run began. They ask three questions: with which rounding is the loss
evaluated at the point (`noise`)? What does a model of the loss predict there,
and does a run that begins there gain anything (`verdict`)? Is the gradient that
of the loss (`slopes`)?

Thresholds without a source are our choices. `how_it_works.md` in the
documentation states them, and `benchmarks/claims.py` tries them on problems
whose minima are known.
"""

from kormos.solvers.convergence.noise import FINEST
from kormos.solvers.convergence.noise import MOST_MEASURING
from kormos.solvers.convergence.noise import ROUNDINGS
from kormos.solvers.convergence.noise import measured_noise
from kormos.solvers.convergence.noise import vanished_noise
from kormos.solvers.convergence.slopes import compare_slope
from kormos.solvers.convergence.slopes import confirmed
from kormos.solvers.convergence.verdict import LEAST_GAIN
from kormos.solvers.convergence.verdict import PROMISE
from kormos.solvers.convergence.verdict import TINIEST
from kormos.solvers.convergence.verdict import Verdict
from kormos.solvers.convergence.verdict import is_gain
from kormos.solvers.convergence.verdict import is_promising
from kormos.solvers.convergence.verdict import judge
from kormos.solvers.convergence.verdict import size_of_loss
from kormos.solvers.convergence.verdict import sober
from kormos.solvers.convergence.verdict import trial_evaluations

__all__ = [
    "FINEST",
    "LEAST_GAIN",
    "MOST_MEASURING",
    "PROMISE",
    "ROUNDINGS",
    "TINIEST",
    "Verdict",
    "compare_slope",
    "confirmed",
    "is_gain",
    "is_promising",
    "judge",
    "measured_noise",
    "size_of_loss",
    "sober",
    "trial_evaluations",
    "vanished_noise",
]
