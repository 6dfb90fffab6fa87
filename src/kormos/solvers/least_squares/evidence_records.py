"""The state of a run with evidence, and its columns in the History."""

from typing import NamedTuple

import numpy as np

from kormos.solvers.least_squares.evidence import Evidence
from kormos.solvers.least_squares.evidence import Hyperparameters
from kormos.solvers.problem import Problem
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Vector

KEY = "levenberg marquardt with evidence"
# The name of the group of all parameters.
_ALL = "all"


class State(NamedTuple):
    """The state from which a later run continues.

    Attributes:
        theta: the accepted point, `(size,)`.
        loss: the loss there, without the penalty.
        scale: the scale D of the parameters, `(size,)`.
        damping: the damping of the latest step.
        radius: the trust radius.
        alpha: the weight of each group of parameters, `(groups,)`; zeros
            before the first estimate.
        beta: the weight of the errors.
    """

    theta: Vector
    loss: Scalar
    scale: Vector
    damping: Scalar
    radius: Scalar
    alpha: Vector
    beta: Scalar


def groups_of(problem: Problem, kind: str | None) -> tuple[Array, list[str]]:
    """The group of each parameter, `(size,)`, and the groups' names."""
    if kind != "evidence-by-variable":
        return np.zeros(problem.size, "int64"), [_ALL]
    packing = problem.objective.program.packing
    parts = packing.split_array(np.arange(problem.size, dtype="float64"))
    groups = np.zeros(problem.size, "int64")
    for number, part in enumerate(parts):
        groups[np.asarray(part, "int64").reshape(-1)] = number
    return groups, [variable.path for variable in packing.variables]


def logs(
    names: list[str], hyper: Hyperparameters, evidence: Evidence
) -> dict[str, float]:
    """The numbers of a point for the History, all with the same weights."""
    groups = list(zip(names, hyper.alpha, evidence.effective, strict=True))
    own = {f"alpha/{name}": a for name, a, _ in groups}
    own |= {f"effective_parameters/{name}": gamma for name, _, gamma in groups}
    if names == [_ALL]:
        own = {"alpha": hyper.alpha[0]}
    own |= {
        "beta": hyper.beta,
        "effective_parameters": evidence.effective.sum(),
        "log_evidence": evidence.log_evidence,
    }
    return {name: float(value) for name, value in own.items()}
