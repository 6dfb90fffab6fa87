"""The methods of `scipy.optimize.minimize`.

SciPy runs its own loop; its callback is where it meets the fit. Differs from
calling `scipy.optimize.minimize` with the same functions in:

1. every method is given the derivatives that it can use and nothing else;
2. iterations are counted alike, and a run ends after the last epoch: SciPy's
   `maxiter` counts evaluations in some methods;
3. a trial point with a NaN or infinite loss counts as a step too long;
4. no evaluation lies outside the bounds;
5. unknown options raise;
6. trust-constr with bounds or inequalities ends by `xtol`: its test of `gtol`
   is met while the barrier still keeps it away from them;
7. parameters that the bounds fix are kept from SciPy, which mishandles them;
8. TNC, which takes differences of gradients, is told of their rounding;
9. a loss whose value and gradient start below one is multiplied by a power of
   two, unless a tolerance is given: most tolerances of SciPy are absolute, and
   a small loss would pass for converged where it starts;
10. COBYQA counts every evaluation after those of its first model as an
    iteration, for it reports no other.
"""

import warnings

import numpy as np
import scipy.optimize

from kormos.numerics import stopping
from kormos.numerics.stopping import Outcome
from kormos.optimizers.scipy_evaluator import Evaluator
from kormos.optimizers.scipy_evaluator import Halt
from kormos.optimizers.scipy_evaluator import feasibility
from kormos.optimizers.scipy_methods import METHODS
from kormos.optimizers.scipy_methods import failure

# The methods whose `gtol` bounds the 2-norm of the gradient, not the largest
# entry.
_TWO_NORM = ("dogleg", "trust-ncg", "trust-exact", "trust-krylov")

# A dense Hessian takes as many products as there are parameters.
MOST_DENSE_PARAMETERS = 2000
# A matrix takes 3 GB, and methods keep several.
MOST_SQUARE_PARAMETERS = 20_000

# What trust-constr says of an end at a point that it finds infeasible.
_VIOLATED = "Constraint violation exceeds 'gtol'"


class ScipyRun:
    """One call of `scipy.optimize.minimize`."""

    def __init__(self, spec, options, tol):
        self._spec = spec
        # `tol` leaves a tolerance of zero, which is off, as it is.
        defaults = {
            name: default if tol is None or default == 0 else tol
            for name, default in spec.tolerances.items()
        }
        self._options = {**spec.limits, **defaults, **options}
        self._given = options
        self._is_absolute = tol is not None or any(
            name in options for name in (*spec.tolerances, "f_target")
        )

    def check(self, size, bounded, constraint_types):
        """Refuses what the method cannot honour."""
        spec = self._spec
        if bounded and not spec.bounds:
            raise ValueError(
                f"Method '{spec.name}' takes no bounds (nor a `NonNeg` "
                f"constraint, which is one). Use one of {_able('bounds')}. "
                f"Received: method='{spec.name}' with bounds"
            )
        refused = sorted(set(constraint_types) - set(spec.constraints))
        if refused:
            raise ValueError(
                f"Method '{spec.name}' takes no constraints. Use one of "
                f"{_able('constraints')}. "
                f"Received: method='{spec.name}' with constraints {refused}"
            )
        if spec.square and size > MOST_SQUARE_PARAMETERS:
            raise ValueError(
                f"Method '{spec.name}' keeps a dense matrix, for "
                f"{MOST_SQUARE_PARAMETERS:,} parameters at most. Use 'lbfgs' "
                f"or 'l-bfgs-b'. Received: {size:,} parameters, a matrix of "
                f"{8e-6 * size**2:,.0f} MB or more"
            )
        if spec.hessian and size > MOST_DENSE_PARAMETERS:
            raise ValueError(
                f"Method '{spec.name}' needs a dense Hessian, which is formed "
                f"for {MOST_DENSE_PARAMETERS:,} parameters at most. Use "
                "'trust-ncg', 'trust-krylov' or 'newton-cg'. "
                f"Received: {size:,} parameters, a Hessian of "
                f"{8e-6 * size**2:,.0f} MB from {size:,} products"
            )

    def __call__(self, problem, theta, report):
        spec = self._spec
        options = dict(self._options)
        evaluator = Evaluator(problem, theta, spec)
        if report(*evaluator.accepted):
            start = evaluator.accepted
            return Outcome(None, start.theta, start.loss)
        if evaluator.start().size == 0:
            return Outcome(
                stopping.CONVERGED,
                evaluator.accepted.theta,
                evaluator.accepted.loss,
                detail="the bounds fix every parameter",
            )
        if not self._is_absolute:
            evaluator.rescale()
        self._suit(problem, evaluator, options)
        start = evaluator.start()
        calls, skipped = 0, spec.preamble(start.size)

        def callback(x, state=None):
            nonlocal calls
            calls += 1
            if calls > skipped:
                evaluator.accept(x)
                if report(*evaluator.accepted):
                    raise Halt

        fun, jac = evaluator.value, None
        if spec.shows_trials:
            jac = evaluator.grad
            evaluator.on_gradient = callback
        elif spec.gradient:
            # One call rather than two.
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
                    report(*evaluator.accepted)
        except Halt as halt:
            x, loss, grad = evaluator.accepted
            result = scipy.optimize.OptimizeResult(
                x=x,
                fun=loss,
                jac=grad,
                success=False,
                status=99,
                message="stopped by kormos",
            )
            outcome = Outcome(halt.status, x, loss, detail=halt.detail)
        else:
            _unscale(result, evaluator.scale)
            outcome = self._outcome(evaluator, result, options)
        result.setdefault("nit", max(0, calls - skipped))
        result["nfev"] = problem.fg_evals
        outcome.raw = result
        return outcome

    def _suit(self, problem, evaluator, options):
        """Chooses the start and the options that some methods need."""
        name, bounded = self._spec.name, problem.is_bounded
        if name == "tnc":
            # For its differences of gradients.
            options.setdefault("accuracy", problem.epsilon**0.5)
        if name == "cobyla":
            options.setdefault("catol", feasibility(problem))
        if name == "cobyqa":
            options.setdefault("feasibility_tol", feasibility(problem))
        if name == "cobyla" and bounded:
            # Its first simplex reaches up by `rhobeg`, and sees nothing beyond
            # the bounds.
            width = problem.upper - problem.lower
            radius = min(1.0, 0.5 * width[width > 0].min())
            radius = options.setdefault("rhobeg", radius)
            below = np.minimum(evaluator.accepted.theta, problem.upper - radius)
            evaluator.move(problem.project(below))
        if name == "trust-constr" and bounded:
            evaluator.move(_interior(problem, evaluator.accepted.theta))
        if name == "trust-constr" and (bounded or problem.has_inequalities):
            options["gtol"] = self._given.get("gtol", 0.0)

    def _outcome(self, evaluator, result, options):
        status = _status(result, evaluator)
        if status == stopping.NON_FINITE:
            result["x"], result["fun"], _ = evaluator.accepted
        else:
            result["x"] = evaluator.point(np.array(result.x))
        outcome = Outcome(status, result.x, float(result.fun))
        outcome.detail = f"SciPy: {result.message}".rstrip(".")
        if status == stopping.CONVERGED:
            name, value = self._test(evaluator, result, options)
            # The gradient was compared in SciPy's scale.
            scale = evaluator.scale if name == "gtol" else 1.0
            outcome.test = name
            outcome.threshold = options[name] / scale
            if value is not None and value <= outcome.threshold:
                outcome.value = value
        return outcome

    def _test(self, evaluator, result, options):
        """The tolerance that ended the run, and the value it was given.

        The value is `None` where SciPy keeps it to itself.
        """
        spec = self._spec
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


def _unscale(result, scale):
    """Brings a result of SciPy back to the loss that was asked for."""
    if scale == 1:
        return
    for name in ("fun", "jac", "grad", "hess", "optimality"):
        if name in result and result[name] is not None:
            result[name] = result[name] / scale
    if "hess_inv" in result:
        result["hess_inv"] = result["hess_inv"] * scale
    if "final_simplex" in result:
        simplex, values = result["final_simplex"]
        result["final_simplex"] = simplex, values / scale


def _status(result, evaluator):
    if not np.isfinite(result.x).all() or not np.isfinite(result.fun):
        return stopping.NON_FINITE
    if result.success:
        return stopping.CONVERGED
    status = failure(str(result.message))
    feasible = evaluator.is_feasible(result.x)
    if status == stopping.LINE_SEARCH_FAILED and not feasible:
        return stopping.INFEASIBLE
    if result.message == _VIOLATED and feasible:
        # trust-constr compares violations with its `gtol`, which may be zero.
        return stopping.CONVERGED
    return status


def _interior(problem, theta):
    """The nearest point that keeps a tenth of the box away from its bounds."""
    width = problem.upper - problem.lower
    margin = 0.1 * np.where(np.isfinite(width), width, 1 + np.abs(theta))
    return np.clip(theta, problem.lower + margin, problem.upper - margin)


def _able(what):
    return [name for name, spec in METHODS.items() if getattr(spec, what)]


def _quiet_scipy():
    # The fit says in its own words how SciPy ended.
    for category in (RuntimeWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module="scipy")
    optimize_warning = scipy.optimize.OptimizeWarning
    warnings.filterwarnings("ignore", category=optimize_warning)
    warnings.filterwarnings(
        "error", message="Unknown solver options", category=optimize_warning
    )
