"""One call of `scipy.optimize.minimize`, from the accepted point."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize

from kormos.solvers import statuses
from kormos.solvers.problem import Problem
from kormos.solvers.scipy.evaluator import Evaluator
from kormos.solvers.scipy.evaluator import Halt
from kormos.solvers.scipy.methods import ScipyMethod
from kormos.types import Vector

# A call ends if this many iterates in a row, and these more for each parameter,
# are the same point: COBYQA may iterate at an optimum without end. Our choice:
# models of many parameters do take many evaluations between two iterates.
_MOST_UNCHANGED, _MOST_UNCHANGED_EACH = 100, 10

# trust-constr starts inside of its bounds by at least this part of the box, or
# by the second part where it continues from an end. Its barrier parameter then
# begins at the second number, too. Our choice: a larger margin moves the start
# farther away; with a smaller one, the barrier makes the first steps short.
_MARGIN, _NARROW_MARGIN = 0.1, 1e-5

# COBYLA's first simplex reaches up by at most this part of the narrowest box,
# and by at most its own default of one.
_SIMPLEX_PART = 0.5


class ScipyCall:
    """Calls a method of SciPy.

    Args:
        spec: what the method takes.
        problem: the problem.
        evaluator: the problem as SciPy sees it, at the start.
        given: the options that the user gave.

    Attributes:
        iterations: the iterations of all calls.
    """

    def __init__(
        self,
        spec: ScipyMethod,
        problem: Problem,
        evaluator: Evaluator,
        given: dict[str, Any],
    ):
        self._spec = spec
        self._problem = problem
        self._evaluator = evaluator
        self._given = given
        self.iterations = 0

    def __call__(
        self,
        options: dict[str, Any],
        on_iterate: Callable[[], bool],
        is_again: bool = False,
    ) -> tuple[Any, Halt | None]:
        """Runs the method.

        Args:
            options: SciPy's options.
            on_iterate: called after each iteration, with the evaluator at its
                iterate; returns whether to stop.
            is_again: whether the method starts where it ended before.

        Returns:
            SciPy's result, and `None`; or `None`, and the `Halt` that ended
            the call.
        """
        spec, evaluator = self._spec, self._evaluator
        options = self._suited(options, is_again)
        start = evaluator.start()
        calls, unchanged = 0, 0
        skipped = spec.preamble(start.size)
        most = _MOST_UNCHANGED + _MOST_UNCHANGED_EACH * start.size

        def callback(x: Vector, state: Any = None) -> None:
            nonlocal calls, unchanged
            calls += 1
            if calls <= skipped:
                return
            self.iterations += 1
            unchanged = 0 if evaluator.accept(x) else unchanged + 1
            if on_iterate():
                raise Halt
            if unchanged >= most:
                words = f"no other point in {most} iterations"
                raise Halt(statuses.STALLED, words)

        fun: Callable = evaluator.value
        jac: Any = None
        if spec.shows_trials:
            jac = evaluator.grad
            evaluator.on_gradient = callback
        elif spec.gradient:
            # With both in one function, SciPy calls once rather than twice.
            fun, jac = evaluator.value_and_grad, True
        try:
            with warnings.catch_warnings():
                _quiet_scipy()
                result = scipy.optimize.minimize(
                    fun,
                    start,
                    method=spec.name,
                    jac=jac,
                    hessp=evaluator.hvp if spec.hessp else None,
                    hess=evaluator.hessian if spec.hessian else None,
                    bounds=evaluator.bounds(),
                    constraints=evaluator.constraints(),
                    options=options,
                    callback=None if spec.shows_trials else callback,
                )
            if spec.shows_trials and result.success:
                if evaluator.accept(result.x):
                    on_iterate()
        except Halt as halt:
            return None, halt
        finally:
            evaluator.on_gradient = None
        return result, None

    def _suited(
        self, options: dict[str, Any], is_again: bool
    ) -> dict[str, Any]:
        """Chooses the start and the options that some methods need."""
        problem, evaluator = self._problem, self._evaluator
        name, bounded = self._spec.name, problem.is_bounded
        options = dict(options)
        if name == "tnc":
            # The method uses finite differences of gradients.
            options.setdefault("accuracy", problem.evaluation_eps**0.5)
        if name == "cobyla":
            options.setdefault("catol", problem.feasibility)
        if name == "cobyqa":
            options.setdefault("feasibility_tol", problem.feasibility)
        if name == "cobyla" and bounded:
            # Its first simplex reaches up by `rhobeg`. Beyond the bounds it
            # would only see the loss at the bounds.
            lower, upper = problem.box
            width = upper - lower
            radius = min(1.0, _SIMPLEX_PART * width[width > 0].min())
            radius = options.setdefault("rhobeg", radius)
            below = np.minimum(evaluator.accepted.theta, upper - radius)
            evaluator.move(problem.project(below))
        if name == "trust-constr" and bounded:
            margin = _NARROW_MARGIN if is_again else _MARGIN
            theta = evaluator.accepted.theta
            evaluator.move(_interior(problem, theta, margin))
        if name == "trust-constr" and (bounded or problem.has_inequalities):
            options["gtol"] = self._given.get("gtol", 0.0)
            if is_again:
                # The barrier parameter of a first call would drive it far away.
                options.setdefault("initial_barrier_parameter", _NARROW_MARGIN)
                options.setdefault("initial_barrier_tolerance", _NARROW_MARGIN)
        return options


def _interior(problem: Problem, theta: Vector, margin: float) -> Vector:
    """The nearest point at a distance of a part of the box from its bounds."""
    lower, upper = problem.box
    width = upper - lower
    size = np.where(np.isfinite(width), width, 1 + np.abs(theta))
    inside = margin * size
    return np.clip(theta, lower + inside, upper - inside)


def _quiet_scipy() -> None:
    # The result says in kormos' own words how SciPy ended.
    for category in (RuntimeWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module="scipy")
    optimize_warning = scipy.optimize.OptimizeWarning
    warnings.filterwarnings("ignore", category=optimize_warning)
    warnings.filterwarnings(
        "error", message="Unknown solver options", category=optimize_warning
    )
