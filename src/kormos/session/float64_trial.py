"""Tries whether float64 gets further where a run in float32 has ended."""

import dataclasses

import numpy as np

from kormos.float64.choice import Float64Error
from kormos.processes import now
from kormos.solvers import statuses
from kormos.solvers.convergence import FINEST
from kormos.solvers.convergence import PROMISE
from kormos.solvers.convergence import ROUNDINGS
from kormos.solvers.convergence import measured_noise
from kormos.solvers.convergence import size_of_loss
from kormos.solvers.fresh_run import Gain
from kormos.solvers.fresh_run import try_to_gain
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.surroundings import Evaluate
from kormos.types import Vector

# The most steps of a trial.
_MOST_TRIALS = 40
# The loss is still falling if these steps lower it by more than this part.
_FALLING = 1e-6
# The longest time of a trial: these seconds, or this part of the run's time if
# that is more.
_SECONDS, _PART = 2.0, 0.25
# A gain of fewer roundings than this is hidden by rounding.
_SEEN = 100.0
# A problem with more parameters is not tried, because a second copy of it may
# not fit into memory.
_MOST_PARAMETERS = 10**6


def tried_in_float64(
    outcome: Outcome, problem: Problem, seconds: float
) -> Outcome:
    """Adds to a run's outcome what float64 would gain from its end.

    A noise floor is an optimum if float64 gains no more than what rounding
    hides. If it gains more, rounding has kept the run from the optimum. The
    same holds if the loss is still falling, but is hardly lower than with all
    parameters zero: rounding then hides what the model has learned.

    Args:
        outcome: the `Outcome` of a run.
        problem: the `Problem` of the run.
        seconds: the duration of the run.

    Returns:
        The `Outcome` with a sentence about float64. Its status is `stalled`
        where the noise floor is no optimum. An outcome that is no noise floor
        of a float32 run is returned as it is.
    """
    is_coarse = problem.evaluation_eps > FINEST
    is_floor = outcome.status == statuses.NOISE_FLOOR
    is_in_reach = problem.size <= _MOST_PARAMETERS and not problem.constraints
    if not (is_coarse and is_floor and is_in_reach):
        return outcome
    theta = np.array(outcome.theta)
    try:
        evaluate = problem.objective.in_float64().value_and_grad
        before, grad = evaluate(theta)
    except Exception as error:
        # The fit itself has ended normally, so an error in the trial must not
        # be raised.
        return _found(outcome, f"Float64 could not be tried: {_reason(error)}.")
    if not (np.isfinite(before) and np.isfinite(grad).all()):
        return _found(outcome, "In float64 the loss is not finite here.")
    deadline = now() + max(_SECONDS, _PART * seconds)
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
    return _compared(outcome, problem, theta, before, gain)


def _compared(
    outcome: Outcome,
    problem: Problem,
    theta: Vector,
    before: float,
    gain: Gain,
) -> Outcome:
    """The outcome, after a look at whether rounding hides the gain.

    Args:
        outcome: the `Outcome` of the run in float32.
        problem: the `Problem` of the run.
        theta: the end of the run.
        before: the loss there in float64.
        gain: the `Gain` of the trial.
    """
    noise = _noise(outcome, problem, theta)
    gained = (before - gain.loss) / size_of_loss(before)
    text = (
        f"In float64 {gain.evaluations - gain.non_finite} evaluations from "
        f"here lower the loss by {gained:.1e} of itself"
    )
    without = problem.peek(problem.project(np.zeros_like(theta)))
    # Where zero parameters fit exactly, there is nothing to learn.
    is_hidden = without != 0 and without - outcome.loss < _SEEN * noise
    is_lost = gained > _FALLING and is_hidden
    if before - gain.loss <= _SEEN * noise and not is_lost:
        return _found(outcome, f"{text}, which float32 cannot see.")
    text = f"{text}: `precision='float64'` will get further."
    if is_lost:
        text += (
            f" Where every parameter is zero the loss is {without:.3g}, and "
            f"its rounding here {noise:.1g}: scale the data."
        )
    stalled = dataclasses.replace(
        outcome,
        status=statuses.STALLED,
        test=None,
        value=None,
        threshold=None,
    )
    return _found(stalled, text)


def _noise(outcome: Outcome, problem: Problem, theta: Vector) -> float:
    """The rounding of the loss, which the run may have measured."""
    loss = float(outcome.loss)
    if outcome.test == PROMISE:
        assert outcome.threshold is not None
        return outcome.threshold * size_of_loss(loss) / ROUNDINGS
    return measured_noise(problem.peek, theta, loss, problem.storage_eps)


def _reason(error: Exception) -> str:
    """An error in a few words."""
    if isinstance(error, Float64Error):
        # The error's advice is for users who have asked for float64.
        return str(error).split("Received: ")[-1].rstrip(".")
    return f"{type(error).__name__}, {error}".rstrip(".")


def _until(deadline: float, evaluate: Evaluate) -> Evaluate:
    """A function that calls `evaluate`, and returns NaN after a deadline."""

    def in_time(theta: Vector) -> tuple[float, Vector]:
        if now() > deadline:
            return np.nan, np.full_like(theta, np.nan)
        return evaluate(theta)

    return in_time


def _found(outcome: Outcome, text: str) -> Outcome:
    findings = f"{outcome.findings} {text}"
    return dataclasses.replace(outcome, findings=findings)
