"""`kormos.solve`: minimizes an objective that the user has written."""

from typing import Any

from kormos import optimizers
from kormos.objective.given import GivenObjective
from kormos.objective.given import vector_constraints
from kormos.optimizers.stage import LossSettings
from kormos.optimizers.stage import refuse_settings
from kormos.session.attachment import check_resume
from kormos.session.result import Result
from kormos.session.run import checked_budget
from kormos.session.session import Session
from kormos.session.task import Task
from kormos.session.trace_observer import TraceObserver
from kormos.session.trace_observer import stages_of
from kormos.solvers.protocols import Objective


def solve(
    objective: Objective,
    theta: Any,
    method: Any = "lbfgs",
    *,
    max_iterations: int | None = None,
    bounds: Any = None,
    constraints: Any = None,
    options: dict[str, Any] | None = None,
    tol: float | None = None,
    callbacks: Any = None,
    verbose: int | str = "auto",
    max_evals: int | None = None,
    max_seconds: float | None = None,
    target_loss: float | None = None,
    resume: bool = False,
) -> Result:
    """Minimizes a loss of one vector that is not the loss of a Keras model.

    The loss may be computed by anything: NumPy, another framework, or many
    processes. Methods, limits, callbacks and results are the same as those of
    `kormos.minimize`.

    Args:
        objective: An object with an attribute `size`, the number of parameters,
            and a method `value_and_grad(theta)`. The method takes a float64
            array of shape `(size,)`, and returns the loss, a number, and its
            gradient, an array of shape `(size,)`. The following members are
            optional:

            - `hvp(theta, vector)` returns the product of the Hessian and a
              vector. Methods that use second derivatives need it.
            - `gauss_newton(theta)` returns the Gauss-Newton matrix `J'HJ`, an
              array of shape `(size, size)`, where J are the derivatives of the
              outputs and H those of the loss with respect to the outputs (for a
              sum of squares, `2 J'J`). `"lm"` and `"gauss-newton"` need it,
              and `"lm"` runs without geodesic acceleration here.
            - `epsilon` is the machine epsilon of the arithmetic of
              the objective. Defaults to that of float64.
        theta: The starting point, an array of shape `(size,)`. It is not
            changed.
        method: A name, in any letter case, or a
            `kormos.optimizers.BatchOptimizer`. Defaults to `"lbfgs"`.
        max_iterations: Integer, the largest number of accepted iterations.
            Defaults to the method's own `epochs`, or 1000.
        bounds: A `scipy.optimize.Bounds`, a list with a pair `(low, high)` for
            each parameter, or `{"theta": (low, high)}`.
        constraints: A `scipy.optimize.LinearConstraint`; a dict
            `{"type": "eq" or "ineq", "fun": fn, "jac": jac}` of functions of
            `theta`; or a list of these. `fn` returns an array of shape `(m,)`,
            whose values are kept at zero (`"eq"`), or at zero or above
            (`"ineq"`). `jac` returns its derivatives, of shape `(m, size)`.
        options: Dict of options of the method.
        tol: Float, SciPy's `tol`, which sets the tolerances of the method.
        callbacks: List of functions, each called as `callback(iteration, logs)`
            after each accepted iteration, and of Keras callbacks that need no
            model. If a function returns true, the run ends.
        verbose: `0` for silence, `1` for a live line, `2` for one line per
            iteration, `3` for one line per iteration that includes the numbers
            of the method. `"auto"`, the default, means `1` in a terminal or a
            notebook, and `0` elsewhere.
        max_evals: Integer, the largest number of evaluations of the loss (with
            or without its gradient).
        max_seconds: Float, the largest number of seconds. The run may exceed it
            by the time of one evaluation.
        target_loss: Float. The run ends when the loss is this low. Defaults
            to `None`, like the two limits before it: no limit.
        resume: Boolean, whether to continue with the curvature that `method`,
            an optimizer instance, has stored since its last run. Defaults to
            `False`.

    Returns:
        A `kormos.session.result.Result`, as `kormos.minimize` returns, with the
        final point in `theta`.

    Raises:
        ValueError: If an argument cannot be used.

    Example:

    ```python
    class Paraboloid:
        size = 3

        def value_and_grad(self, theta):
            return ((theta - 1) ** 2).sum(), 2 * (theta - 1)

    result = kormos.solve(Paraboloid(), np.zeros(3))
    print(result.theta)  # [1. 1. 1.]
    ```
    """
    optimizer = optimizers.get(method, "method")
    if resume:
        check_resume(optimizer, optimizer is not method)
    stages = stages_of(
        "solve", optimizer, max_iterations, options=options, tol=tol
    )
    if any(stage.assigns for stage in stages):
        raise ValueError(
            "Keras' own optimizers update variables, but `kormos.solve` has "
            "only a vector: use `kormos.minimize`, or a `Chain` of kormos' "
            f"own methods. Received: method='{optimizer.name}'"
        )
    refuse_settings("solve", stages, LossSettings._fields)
    budget = checked_budget(max_evals, max_seconds, target_loss)
    observer = TraceObserver(
        callbacks or [],
        verbose,
        own_limit=max_iterations is not None or optimizer.epochs is not None,
    )
    observer.refuse_resamplers("solve")
    given = GivenObjective(objective, theta)
    if any(stage.uses_hessian for stage in stages):
        given.check_hessian()
    result = Session(
        optimizer,
        stages,
        Task(
            optimizer,
            lambda settings: (given, None),
            bounds,
            vector_constraints(constraints),
        ),
        observer,
        budget=budget,
        resume=resume,
    )()
    result.theta = given.initial_position()
    return result
