"""The outcome that SciPy's result claims."""

from typing import Any

import numpy as np
import scipy.optimize

from kormos.solvers import statuses
from kormos.solvers.constrained.contradiction import is_contradictory
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.scipy.evaluator import Evaluator
from kormos.solvers.scipy.methods import ScipyMethod
from kormos.solvers.scipy.methods import failure
from kormos.types import Vector

# The methods whose `gtol` bounds the 2-norm of the gradient rather than its
# largest entry.
_TWO_NORM = ("dogleg", "trust-ncg", "trust-exact", "trust-krylov")

# The message of trust-constr if it ends at a point that it finds infeasible.
_VIOLATED = "Constraint violation exceeds 'gtol'"

# Fields that are proportional to the loss.
_IN_UNITS_OF_LOSS = (
    "fun",
    "grad",
    "hess",
    "optimality",
    "lagrangian_grad",
    "multipliers",
    "v",
    "constr_penalty",
    "barrier_parameter",
    "barrier_tolerance",
)


def unscale(result: Any, scale: float) -> None:
    """Changes a result of SciPy to the units of the user's loss.

    Args:
        result: SciPy's result.
        scale: the factor by which the loss was multiplied.
    """
    if scale == 1:
        return
    names = list(_IN_UNITS_OF_LOSS)
    if "constr" not in result:
        # In trust-constr's result, this name has the constraints' Jacobians.
        names.append("jac")
    for name in names:
        if result.get(name) is not None:
            result[name] = _divided(result[name], scale)
    if "hess_inv" in result:
        inverse = result["hess_inv"]
        if isinstance(inverse, scipy.optimize.LbfgsInvHessProduct):
            # A scaled linear operator has no `todense`, so the pairs are
            # scaled.
            sk, yk = inverse.sk, inverse.yk / scale
            result["hess_inv"] = scipy.optimize.LbfgsInvHessProduct(sk, yk)
        else:
            result["hess_inv"] = inverse * scale
    if "final_simplex" in result:
        simplex, values = result["final_simplex"]
        result["final_simplex"] = simplex, values / scale


def _divided(value: Any, scale: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_divided(part, scale) for part in value)
    return value / scale


def claimed(
    spec: ScipyMethod,
    problem: Problem,
    evaluator: Evaluator,
    result: Any,
    options: dict[str, Any],
    kept: Vector,
) -> Outcome:
    """The outcome that SciPy claims.

    Args:
        spec: what the method takes.
        problem: the problem.
        evaluator: the problem as SciPy sees it, at the last iterate.
        result: SciPy's result, unscaled.
        options: the options of the call.
        kept: the best point so far, `(size,)`.
    """
    status = _status(result, problem, kept)
    outcome = Outcome(status, evaluator.accepted.theta, evaluator.accepted.loss)
    outcome.detail = f"SciPy: {result.message}".rstrip(".")
    if status == statuses.CONVERGED:
        name, value = _test(spec, evaluator, result, options)
        # SciPy compared the scaled gradient.
        scale = evaluator.scale if name == "gtol" else 1.0
        outcome.test = name
        outcome.threshold = options[name] / scale
        if value is not None and value <= outcome.threshold:
            outcome.value = value
    return outcome


def _test(
    spec: ScipyMethod,
    evaluator: Evaluator,
    result: Any,
    options: dict[str, Any],
) -> tuple[str, float | None]:
    """The tolerance that ended the run, and the value that was compared.

    The value is `None` if SciPy does not return it.
    """
    if result.fun <= options.get("f_target", -np.inf):
        return "f_target", float(result.fun)
    if spec.name == "tnc":
        return ("gtol", "ftol", "xtol")[result.status], None
    if spec.name == "trust-constr":
        if result.status == 1:
            return "gtol", float(result.optimality)
        return "xtol", float(result.tr_radius)
    name, *others = spec.tolerances
    if name != "gtol":
        return name, None
    order = 2 if spec.name in _TWO_NORM else options.get("norm", np.inf)
    size = evaluator.stationarity(order)
    if size <= options[name] / evaluator.scale or not others:
        return name, size
    if others == ["ftol"]:
        return "ftol", evaluator.relative_decrease()
    return others[0], None


def _status(result: Any, problem: Problem, kept: Vector) -> str:
    if not np.isfinite(result.x).all() or not np.isfinite(result.fun):
        return statuses.NON_FINITE
    if result.success:
        return statuses.CONVERGED
    status = failure(str(result.message))
    feasible = problem.is_feasible(kept)
    if status == statuses.INFEASIBLE and feasible:
        # trust-constr compares violations with its `gtol`, which may be zero.
        # SLSQP blames the constraints if its quadratic subproblem fails.
        if result.message == _VIOLATED:
            return statuses.CONVERGED
        return statuses.LINE_SEARCH_FAILED
    if status in (statuses.LINE_SEARCH_FAILED, statuses.INFEASIBLE):
        return failure_at(problem, kept)
    return status


def failure_at(problem: Problem, theta: Vector) -> str:
    """The status of a run that failed at a point."""
    if not problem.is_feasible(theta) and is_contradictory(problem, theta):
        return statuses.INFEASIBLE
    return statuses.LINE_SEARCH_FAILED
