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
9. COBYQA counts every evaluation after those of its first model as an
   iteration, for it reports no other.
"""

import numbers
import types
import warnings

import keras
import numpy as np
import scipy.optimize

from kormos.numerics import stopping
from kormos.numerics.stopping import Outcome
from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.base import Stage
from kormos.optimizers.scipy_evaluator import Evaluator
from kormos.optimizers.scipy_evaluator import Halt
from kormos.optimizers.scipy_evaluator import feasibility
from kormos.optimizers.scipy_methods import METHODS
from kormos.optimizers.scipy_methods import failure

DEFAULT_METHOD = "l-bfgs-b"
DEFAULT_EPOCHS = 20

# The methods whose `gtol` bounds the 2-norm of the gradient, not the largest
# entry.
_TWO_NORM = ("dogleg", "trust-ncg", "trust-exact", "trust-krylov")

# A dense Hessian takes as many products as there are parameters.
MOST_DENSE_PARAMETERS = 2000

# What trust-constr says of an end at a point that it finds infeasible.
_VIOLATED = "Constraint violation exceeds 'gtol'"


@keras.saving.register_keras_serializable(package="kormos")
class ScipyBatchOptimizer(BatchOptimizer):
    """Trains with a method of `scipy.optimize.minimize`.

    Lists for `method`, `epochs`, `options` and `pretrain_fn` run as stages,
    each starting where the last ended; what is not a list serves all stages.

    A model's file holds all of these arguments; functions come back from it
    if they are registered with `keras.saving.register_keras_serializable`.

    Args:
        name: name of the optimizer.
        method: one of SciPy's method names, in any letter case, or a list of
            them. Defaults to `"l-bfgs-b"`.
        epochs: the number of iterations when `fit` is not told, or a list.
            Defaults to 20.
        pretrain_fn: function of the model, called before a stage starts, to
            freeze layers for instance, or a list.
        options: dict of the method's options, or a list. `maxiter` limits the
            epochs further.
        bounds: dict from a variable's path, or a regular expression on paths,
            to `(low, high)`; or a list of pairs `(variable, (low, high))`.
            Each broadcasts to the variable's shape, and `None` is no bound. A
            `NonNeg` constraint of a variable is a bound without being listed.
        constraints: a dict `{"type": "eq" or "ineq", "fun": fn}` or a list of
            these, with `fn` a function of no arguments that reads variables;
            its values are held at zero, or at zero and above.
        tol: SciPy's `tol`, which sets the method's tolerances.
        batch_size: the most rows in memory at once when `fit` is not told.

    Raises:
        ValueError: if a method or an option is unknown, or lists differ in
            length.

    Attributes:
        results: SciPy's `OptimizeResult`s of the latest fit, one a stage.
        fg_evals: evaluations of the loss in the latest fit.
        hessp_evals: Hessian products in the latest fit.

    Example:

    ```python
    model.compile(
        optimizer=kormos.optimizers.ScipyBatchOptimizer(
            method="l-bfgs-b", options={"maxcor": 50}
        ),
        loss="mse",
    )
    model.fit(x, y, epochs=100)
    ```
    """

    def __init__(
        self,
        name="scipy",
        method=None,
        epochs=None,
        pretrain_fn=None,
        options=None,
        bounds=None,
        constraints=None,
        tol=None,
        batch_size=None,
    ):
        super().__init__(
            name=name,
            epochs=epochs,
            batch_size=batch_size,
            pretrain_fn=pretrain_fn,
            bounds=bounds,
            constraints=constraints,
        )
        self.method = method or DEFAULT_METHOD
        self.options = options
        self.tol = tol
        self.stages()

    def stages(self, epochs=None, **overrides):
        unknown = set(overrides) - {"method", "options", "tol", "pretrain_fn"}
        if unknown:
            raise ValueError(
                "Unknown arguments. Expected some of: method, options, tol, "
                f"pretrain_fn. Received: {sorted(unknown)}"
            )
        settings = {
            "method": self.method,
            "epochs": self.epochs if epochs is None else epochs,
            "options": self.options,
            "pretrain_fn": self.pretrain_fn,
            "tol": self.tol,
        }
        settings.update({k: v for k, v in overrides.items() if v is not None})
        if settings["epochs"] is None:
            settings["epochs"] = DEFAULT_EPOCHS
        return [_stage(**values) for values in _one_a_stage(settings)]

    def get_config(self):
        settings = {
            "method": self.method,
            "options": self.options,
            "tol": self.tol,
        }
        return {
            **super().get_config(),
            **keras.saving.serialize_keras_object(settings),
        }


def _one_a_stage(settings):
    """Splits settings that may be lists into a dict for each stage."""
    lists = {k: v for k, v in settings.items() if isinstance(v, (list, tuple))}
    lengths = {k: len(v) for k, v in lists.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(
            "Lists for stages must have the same length, one entry a stage. "
            f"Received: lengths {lengths}"
        )
    count = next(iter(lengths.values()), 1)
    return [
        {k: v[i] if k in lists else v for k, v in settings.items()}
        for i in range(count)
    ]


def _stage(method, epochs, options, pretrain_fn, tol):
    if not isinstance(method, str) or method.lower() not in METHODS:
        raise ValueError(
            "Argument `method` must be one of SciPy's method names, in any "
            f"letter case: {sorted(METHODS)}. Received: method={method!r}"
        )
    spec = METHODS[method.lower()]
    if not isinstance(options, (dict, types.NoneType)):
        raise ValueError(
            "Argument `options` must be a dict of the method's options. "
            f"Received: options={options!r}"
        )
    if not isinstance(tol, (numbers.Real, types.NoneType)):
        raise ValueError(
            f"Argument `tol` must be a number. Received: tol={tol!r}"
        )
    options = dict(options or {})
    limit = options.pop("maxiter", None)
    unknown = sorted(set(options) - set(spec.options))
    if unknown:
        raise ValueError(
            f"Unknown options for method '{spec.name}'. Expected some of: "
            f"{sorted([*spec.options, 'maxiter'])}. "
            f"Received: {', '.join(unknown)}"
        )
    counts = [epochs] if limit is None else [epochs, limit]
    for count in counts:
        if not _is_count(count):
            raise ValueError(
                "A number of iterations (`epochs`, `max_iterations` or the "
                "option 'maxiter') must be an integer, zero or more. "
                f"Received: {count!r}"
            )
    run = _Run(spec, options, tol)
    uses_hessian = spec.hessp or spec.hessian
    return Stage(min(counts), pretrain_fn, run.check, run, uses_hessian)


def _is_count(value):
    return isinstance(value, (int, np.integer)) and value >= 0


class _Run:
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

        if spec.shows_trials:
            evaluator.on_gradient = callback
        try:
            with warnings.catch_warnings():
                _quiet_scipy()
                result = scipy.optimize.minimize(
                    evaluator.value,
                    start,
                    method=spec.name,
                    jac=evaluator.grad if spec.gradient else None,
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
            outcome.test = name
            outcome.threshold = options[name]
            if value is not None and value <= options[name]:
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
        if size <= options[name] or not others:
            return name, size
        if others == ["ftol"]:
            return "ftol", evaluator.relative_decrease()
        return others[0], None


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
