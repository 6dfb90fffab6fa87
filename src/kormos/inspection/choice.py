"""Chooses the method of `optimizer="auto"`."""

from __future__ import annotations

from kormos.inspection import costs
from kormos.inspection.kinks import kinks
from kormos.objective import Objective
from kormos.objective.base import FlatObjective
from kormos.optimizers.auto import Auto
from kormos.optimizers.auto import Choice
from kormos.session.task import Task

# The most parameters for a dense matrix, and for a matrix of least squares, if
# nothing else is known about the loss.
_MOST_DENSE = 5_000
_MOST_SQUARE = 2_000
# Up to this many parameters, a dense matrix costs almost nothing. No evaluation
# is timed then, because that could take as long as the fit. Our choice.
_FREE_DENSE = 100
# If an evaluation takes at least this many seconds, steps on batches make
# faster progress at first: Adam then takes more than a hundred steps in the
# time of a few iterations. Our choice.
_SLOW = 0.2
# The number of epochs without an improvement after which Adam ends.
_PATIENCE = 3
_ADAM_SHARE = 0.2


def choose(
    optimizer: Auto,
    task: Task,
    has_residuals: bool = False,
    is_timed: bool = False,
) -> None:
    """Chooses the stages of an optimizer.

    Args:
        optimizer: the optimizer.
        task: the `Task` of the fit. Its loss is evaluated a few times.
        has_residuals: whether the loss is a sum of squares of residuals.
        is_timed: whether the fit has a limit of seconds.
    """
    task.prepare_choice()
    optimizer.take(_choice(task, has_residuals, is_timed))


def _choice(task: Task, has_residuals: bool, is_timed: bool) -> Choice:
    objective = task.objective
    if task.constraints:
        return Choice(
            ["lbfgs"], ("It accepts constraints, for any number of parameters.")
        )
    if isinstance(objective, Objective):
        return _for_model(objective, is_timed)
    if has_residuals:
        if objective.size <= _MOST_SQUARE:
            return Choice(
                ["lm"],
                "The loss is a sum of squares of residuals, and with "
                f"{objective.size:,} parameters its steps are cheap.",
            )
        return Choice(
            ["lbfgs"],
            f"With {objective.size:,} parameters, a step of least squares "
            "would take more time than it saves.",
        )
    if objective.size <= _MOST_DENSE:
        return _dense_or_not(objective)
    return Choice(
        ["lbfgs"],
        f"Its memory and time are only proportional to the {objective.size:,} "
        "parameters.",
    )


def _for_model(objective: Objective, is_timed: bool) -> Choice:
    seconds = _seconds(objective)
    methods = costs.estimate(objective, seconds, kinks(objective).passed)
    name, reason = costs.choose(methods, objective)
    if not (name == "lbfgs" and seconds > _SLOW and _can_shuffle(objective)):
        return Choice([name], reason)
    return Choice(
        ["adam", "lbfgs"],
        f"An evaluation of all rows takes {seconds:.2g} s: steps on batches "
        "make faster progress at first, and steps on all rows reach the "
        "optimum.",
        patience=[_PATIENCE, None],
        share=[_ADAM_SHARE, None] if is_timed else None,
    )


def _can_shuffle(objective: Objective) -> bool:
    return not objective.is_streamed and objective.processes.is_alone


def _dense_or_not(objective: FlatObjective) -> Choice:
    """The choice if only the number of parameters and the time are known."""
    is_small = objective.size <= _FREE_DENSE
    if is_small or costs.is_dense_cheap(objective.size, _seconds(objective)):
        return Choice(
            ["ssbroyden"],
            f"With {objective.size:,} parameters a dense matrix costs little "
            "compared to an evaluation, and saves iterations.",
        )
    return Choice(
        ["lbfgs"],
        "An evaluation is cheap, and a dense matrix of "
        f"{objective.size:,} parameters would cost more than it saves.",
    )


def _seconds(objective: FlatObjective) -> float:
    """The seconds of an evaluation, compiled."""
    theta = objective.initial_position()
    return costs.time_evaluation(objective, theta, repeats=1).seconds
