"""From float32 to float64 in the middle of a fit, and back at its end."""

import dataclasses

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
    if optimizer.solver_state is not None:
        optimizer.solver_state.forget_loss()


def settled(outcome, objective, start=None):
    """The outcome with the loss of what the variables keep of it.

    Variables round what is computed in a wider dtype, and must not keep what
    is worse than what they began with.

    Args:
        outcome: the `Outcome` of a run, whose point is assigned.
        objective: the `FlatObjective` of the run.
        start: the variables' values before the run, to go back to where they
            are better, or `None`.
    """
    if objective.rounding <= objective.epsilon:
        return outcome
    loss = objective.value(objective.initial_position())
    if start is not None:
        before = objective.value(start)
        if loss > before:
            objective.assign(start)
            loss = before
    return dataclasses.replace(outcome, kept_loss=loss)
