"""Whether float64 goes on where float32 has ended: it is tried."""

import dataclasses
import time

import numpy as np

from kormos.numerics import stopping
from kormos.numerics.convergence import FINEST
from kormos.numerics.convergence import ROUNDINGS
from kormos.numerics.convergence import measured_noise
from kormos.numerics.fresh_run import try_to_gain
from kormos.objective.arithmetic import Float64Error

# Steps that are tried.
_MOST_TRIALS = 40
# A loss that falls by this part of itself in them has not come to rest.
_FALLING = 1e-6
# They may take so many seconds, or this part of the run's own.
_SECONDS, _PART = 2.0, 0.25
# A gain of fewer roundings is hidden by them.
_SEEN = 100.0
# Another copy of a problem with more parameters than this may not fit.
_MOST_PARAMETERS = 10**6


def tried_wider(outcome, problem, seconds):
    """The outcome of a run, with what a short run in float64 from there gains.

    A noise floor is an optimum where float64 gains no more than what rounding
    hides. Where it gains more, rounding has kept the run from the optimum. So
    it has where the loss still falls and is hardly lower than without any
    parameters: what the model tells of the data is lost in the rounding.

    Args:
        outcome: the `Outcome` of a run.
        problem: the `Problem` of the run.
        seconds: how long the run took.
    """
    is_coarse = problem.epsilon > FINEST
    is_floor = outcome.status == stopping.NOISE_FLOOR
    is_in_reach = problem.size <= _MOST_PARAMETERS and not problem.constraints
    if not (is_coarse and is_floor and is_in_reach):
        return outcome
    theta, loss = np.array(outcome.theta), float(outcome.loss)
    try:
        evaluate = problem.widened()
        before, grad = evaluate(theta)
    except Exception as error:
        # A fit that has ended well does not fail for this.
        reason = f"{type(error).__name__}, {error}"
        if isinstance(error, Float64Error):
            # The advice before is for those who have asked for float64.
            reason = str(error).split("Received: ")[-1]
        reason = reason.rstrip(".")
        return _found(outcome, f"Float64 could not be tried: {reason}.")
    if not (np.isfinite(before) and np.isfinite(grad).all()):
        return _found(outcome, "In float64 the loss is not finite here.")
    deadline = time.perf_counter() + max(_SECONDS, _PART * seconds)
    gain = try_to_gain(
        _until(deadline, evaluate),
        theta,
        before,
        grad,
        FINEST,
        problem.lower,
        problem.upper,
        most=_MOST_TRIALS,
    )
    noise = measured_noise(problem.peek, theta, loss, problem.rounding)
    if outcome.threshold is not None:
        # Of a loss that has vanished, differences do not show it.
        noise = max(noise, outcome.threshold * abs(loss) / ROUNDINGS)
    gained = (before - gain.loss) / (abs(before) or 1.0)
    text = (
        f"In float64 {gain.evaluations - gain.non_finite} evaluations from "
        f"here lower the loss by {gained:.1e} of itself"
    )
    without = problem.peek(problem.project(np.zeros_like(theta)))
    # Where zero fits exactly, there is nothing to tell.
    is_hidden = without != 0 and without - loss < _SEEN * noise
    is_lost = gained > _FALLING and is_hidden
    if before - gain.loss <= _SEEN * noise and not is_lost:
        return _found(outcome, f"{text}, which float32 cannot see.")
    text = f"{text}: `precision='float64'` goes on."
    if is_lost:
        text += (
            f" Where every parameter is zero the loss is {without:.3g}, and "
            f"its rounding here {noise:.1g}: scale the data."
        )
    stalled = dataclasses.replace(outcome, status=stopping.STALLED, test=None)
    return _found(stalled, text)


def _until(deadline, evaluate):
    """`evaluate`, whose answers are NaN after the deadline."""

    def in_time(theta):
        if time.perf_counter() > deadline:
            return np.nan, np.full_like(theta, np.nan)
        return evaluate(theta)

    return in_time


def _found(outcome, text):
    findings = f"{outcome.findings} {text}"
    return dataclasses.replace(outcome, findings=findings)
