"""The methods of `scipy.optimize.minimize`.

SciPy runs its own loop; its callback is where it meets the fit. Differs from
calling `scipy.optimize.minimize` with the same functions in:

1. every method is given the derivatives that it can use and nothing else;
2. iterations are counted alike, and a run ends after the last epoch: SciPy's
   `maxiter` counts evaluations in some methods;
3. a trial point with a NaN or infinite loss counts as a step too long;
4. no evaluation lies outside the bounds;
5. unknown options raise;
6. trust-constr within bounds ends by `xtol`: its test of `gtol` is met while
   the barrier still keeps it away from the bounds.
"""

import warnings

import keras
import numpy as np
import scipy.optimize

from kormos.numerics import stopping
from kormos.numerics.stopping import Outcome
from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.base import Stage
from kormos.optimizers.scipy_methods import METHODS
from kormos.optimizers.scipy_methods import failure

DEFAULT_METHOD = "l-bfgs-b"
DEFAULT_EPOCHS = 20

# The methods whose `gtol` bounds the 2-norm of the gradient, not the largest
# entry.
_TWO_NORM = ("dogleg", "trust-ncg", "trust-exact", "trust-krylov")

# A dense Hessian takes as many products as there are parameters.
MOST_DENSE_PARAMETERS = 2000


@keras.saving.register_keras_serializable(package="kormos")
class ScipyBatchOptimizer(BatchOptimizer):
    """Trains with a method of `scipy.optimize.minimize`.

    Lists for `method`, `epochs`, `options` and `pretrain_fn` run as stages,
    each starting where the last ended; what is not a list serves all stages.

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
        settings.update(
            {k: v for k, v in overrides.items() if v is not None}
        )
        if settings["epochs"] is None:
            settings["epochs"] = DEFAULT_EPOCHS
        return [_stage(**values) for values in _one_a_stage(settings)]

    def get_config(self):
        return {
            **super().get_config(),
            "method": self.method,
            "options": self.options,
            "tol": self.tol,
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
    options = dict(options or {})
    limit = options.pop("maxiter", None)
    unknown = sorted(set(options) - set(spec.options))
    if unknown:
        raise ValueError(
            f"Unknown options for method '{spec.name}'. Expected some of: "
            f"{sorted([*spec.options, 'maxiter'])}. "
            f"Received: {', '.join(unknown)}"
        )
    if epochs is not None and (not _is_count(epochs)):
        raise ValueError(
            "Argument `epochs` must be a number of iterations, zero or more. "
            f"Received: epochs={epochs!r}"
        )
    if limit is not None:
        epochs = limit if epochs is None else min(epochs, limit)
    run = _Run(spec, options, tol)
    return Stage(
        epochs, pretrain_fn, run.check, run, spec.hessp or spec.hessian
    )


def _is_count(value):
    return isinstance(value, (int, np.integer)) and value >= 0


class _Halt(Exception):
    """Leaves SciPy's loop; not `StopIteration`, which TNC lets escape."""


class _NoiseFloor(_Halt):
    """Leaves it because the trials of a step differ by rounding alone."""


class _Run:
    """One call of `scipy.optimize.minimize`."""

    def __init__(self, spec, options, tol):
        self._spec = spec
        self._options = {**spec.limits, **options}
        self._tol = tol
        self._tolerances = {
            name: options.get(name, default if tol is None else tol)
            for name, default in spec.tolerances.items()
        }

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
                f"Received: {size:,} parameters "
                f"({8e-9 * size**2:.1f} GB for the Hessian)"
            )

    def __call__(self, problem, theta, report):
        spec = self._spec
        options = self._options
        if spec.interior and problem.is_bounded:
            theta = _interior(problem, theta)
            options = {"gtol": 0.0, **options}
        evaluator = _Evaluator(problem, theta, spec.gradient)
        start, loss, grad = evaluator.accepted_point()
        if report(start, loss, grad):
            return Outcome(None, start, loss)
        iterations = 0

        def callback(intermediate_result):
            nonlocal iterations
            x = np.array(getattr(intermediate_result, "x", intermediate_result))
            iterations += 1
            x = problem.project(x)
            loss, grad = evaluator.at(x)
            evaluator.accept(x, loss, grad)
            if report(x, loss, grad):
                raise _Halt

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
                    bounds=_bounds(problem),
                    constraints=_constraints(problem),
                    tol=self._tol,
                    options=options,
                    callback=callback,
                )
        except _Halt as halt:
            x, loss, grad = evaluator.accepted_point()
            result = scipy.optimize.OptimizeResult(
                x=x,
                fun=loss,
                jac=grad,
                success=False,
                status=99,
                message="stopped by kormos",
            )
            noise = isinstance(halt, _NoiseFloor)
            status = stopping.NOISE_FLOOR if noise else None
        else:
            status = (
                stopping.CONVERGED
                if result.success
                else failure(str(result.message))
            )
        result.setdefault("nit", iterations)
        result["nfev"] = problem.fg_evals
        return self._outcome(problem, evaluator, result, status)

    def _outcome(self, problem, evaluator, result, status):
        theta = problem.project(np.array(result.x, dtype="float64"))
        outcome = Outcome(status, theta, float(result.fun), raw=result)
        if result.status == 99:
            return outcome
        outcome.detail = f"SciPy: {result.message}".rstrip(".")
        if status == stopping.CONVERGED:
            name, value = self._test(problem, evaluator, theta)
            outcome.test = name
            outcome.value = value
            outcome.threshold = self._tolerances[name]
        return outcome

    def _test(self, problem, evaluator, theta):
        """The tolerance that ended the run, and the value it was given."""
        names = list(self._tolerances)
        if "gtol" in names:
            _, grad = evaluator.at(theta)
            if self._spec.name in _TWO_NORM:
                size = float(np.linalg.norm(grad))
            else:
                step = problem.project(theta - grad) - theta
                size = float(np.abs(step).max())
            if size <= self._tolerances["gtol"] or names == ["gtol"]:
                return "gtol", size
            names.remove("gtol")
        if names[0] == "ftol":
            return "ftol", evaluator.relative_decrease()
        return names[0], None


class _Evaluator:
    """Answers SciPy, remembering recent points and hiding non-finite ones."""

    _REMEMBERED = 4
    _MOST_NOISY_TRIALS = 2

    def __init__(self, problem, theta, with_gradient):
        self._problem = problem
        self._with_gradient = with_gradient
        self._memory = {}
        self.accepted_loss = self.accepted_grad = None
        start = problem.project(np.array(theta, dtype="float64"))
        self.accept(start, *self.at(start))

    def at(self, x):
        """Loss and gradient (or `None`) at `x`, evaluated once."""
        x = self._problem.project(x)
        key = x.tobytes()
        if key not in self._memory:
            if self._with_gradient:
                loss, grad = self._problem.value_and_grad(x)
            else:
                loss, grad = self._problem.value(x), None
            while len(self._memory) >= self._REMEMBERED:
                self._memory.pop(next(iter(self._memory)))
            self._memory[key] = loss, grad
            self._note_noise(x, loss)
        return self._memory[key]

    def _note_noise(self, x, loss):
        """Ends the run when a step can no longer be told from none.

        A line search in float32 may spend ten evaluations on that.
        """
        if self.accepted_grad is None or self._problem.constraints:
            return
        noise = 2 * self._problem.epsilon * abs(self.accepted_loss)
        predicted = abs(float(self.accepted_grad @ (x - self.accepted)))
        if max(predicted, abs(loss - self.accepted_loss)) > noise:
            self._noisy_trials = 0
            return
        self._noisy_trials += 1
        if self._noisy_trials == self._MOST_NOISY_TRIALS:
            raise _NoiseFloor

    def accept(self, x, loss, grad):
        self._previous_loss = self.accepted_loss
        self.accepted = x
        self.accepted_loss = loss
        self.accepted_grad = grad
        self._noisy_trials = 0

    def accepted_point(self):
        return self.accepted, self.accepted_loss, self.accepted_grad

    def value(self, x):
        return self._finite(x)[0]

    def grad(self, x):
        return self._finite(x)[1].copy()

    def hvp(self, x, vector, *args):
        return self._problem.hvp(self._problem.project(x), np.asarray(vector))

    def hessian(self, x, *args):
        return self._problem.hessian(self._problem.project(x))

    def relative_decrease(self):
        if self._previous_loss is None:
            return 0.0
        decrease = self._previous_loss - self.accepted_loss
        scale = max(abs(self._previous_loss), abs(self.accepted_loss), 1.0)
        return float(decrease / scale)

    def _finite(self, x):
        loss, grad = self.at(x)
        if np.isfinite(loss) and (grad is None or np.isfinite(grad).all()):
            return loss, grad
        # A line search or trust region that is told of a steep rise from the
        # accepted point shortens its step; told of NaN it gives up.
        step = x - self.accepted
        length = max(float(step @ step), np.finfo("float64").tiny)
        rise = abs(self.accepted_loss) + 1.0
        if self.accepted_grad is not None:
            rise = max(abs(float(self.accepted_grad @ step)), 1e-300)
        return self.accepted_loss + rise, 2 * rise / length * step


def _interior(problem, theta):
    """The nearest point that keeps a tenth of the box away from its bounds."""
    width = problem.upper - problem.lower
    margin = 0.1 * np.where(np.isfinite(width), width, 1 + np.abs(theta))
    return np.clip(theta, problem.lower + margin, problem.upper - margin)


def _bounds(problem):
    if not problem.is_bounded:
        return None
    return scipy.optimize.Bounds(
        problem.lower, problem.upper, keep_feasible=True
    )


def _constraints(problem):
    return [c._asdict() for c in problem.constraints]


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
