"""From float32 to float64 in the middle of a fit, and back at its end."""

import dataclasses

import numpy as np

from kormos.numerics import stopping


def goes_on_wider(outcome, objective, spent):
    """Whether float32 has done what it can, and float64 may follow.

    Args:
        outcome: the `Outcome` of a run.
        objective: the `FlatObjective` of that run.
        spent: the limit that is reached, or `None`.
    """
    is_ended = outcome.status in stopping.WIDENING
    return objective.can_widen and is_ended and spent is None


def widen(objectives, optimizer):
    """Evaluates in float64 from now on, with what the optimizer knows."""
    for objective in objectives:
        if objective is not None:
            objective.widen()
    state = optimizer.solver_state
    if state is not None and not state.is_sound:
        # Of a start that float32 could not evaluate.
        optimizer.solver_state = None
    elif state is not None:
        state.forget_loss()


def settled(outcome, objective, problem, start=None):
    """The outcome with the loss of what the variables keep of it.

    Variables round what is computed in a wider dtype, and must not keep what
    is worse than what they began with.

    Args:
        outcome: the `Outcome` of a run, whose point is assigned.
        objective: the `FlatObjective` of the run.
        problem: the `Problem` of the run.
        start: the variables' values before the run, to go back to where they
            are better, or `None`.
    """
    is_wider = objective.rounding > objective.epsilon
    if not (is_wider and np.isfinite(outcome.loss)):
        return outcome
    # Rounding may lead to where the numerics fail.
    loss = problem.peek(objective.initial_position())
    if start is not None:
        before = problem.peek(start)
        if np.isfinite(before) and not loss <= before:
            objective.assign(start)
            loss = before
    return dataclasses.replace(outcome, kept_loss=loss)
