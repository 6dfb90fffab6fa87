"""Minimizes an objective of the user's own."""

from typing import Any

from kormos import optimizers
from kormos.objective.given import GivenObjective
from kormos.objective.given import vector_constraints
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
    """Minimizes a loss of a vector that is not a Keras model's.

    The loss may be computed by anything: NumPy, another framework, or many
    processes. Methods, limits, callbacks and results are those of
    `kormos.minimize`.

    Args:
        objective: has an attribute `size`, the number of parameters, and a
            method `value_and_grad(theta)` that returns the loss, a number, and
            the gradient, an array of shape `(size,)`, at a float64 array of
            that shape. For methods with second derivatives it has a method
            `hvp(theta, vector)` too, the Hessian times a vector, and for `"lm"`
            a method `gauss_newton(theta)`, the Gauss-Newton matrix `J'HJ` of
            shape `(size, size)`, of J the derivatives of outputs and H those
            of the loss by the outputs (for a sum of squares `2 J'J`); `"lm"`
            has no geodesic acceleration then. An attribute
            `epsilon` is the spacing of numbers near one in its arithmetic;
            without it, that of float64 is assumed.
        theta: the start, an array of shape `(size,)`. It is not changed.
        method: a name, in any letter case, or a `BatchOptimizer`.
        max_iterations: the most accepted iterations. Defaults to 1000.
        bounds: a `scipy.optimize.Bounds`, a pair `(low, high)` for each
            parameter, or `{"theta": (low, high)}`.
        constraints: a `scipy.optimize.LinearConstraint`, a dict `{"type": "eq"
            or "ineq", "fun": fn, "jac": jac}` of functions of `theta`, of which
            `fn` returns what is to be held at zero, or at zero and above, of
            shape `(m,)`, and `jac` its derivatives, of shape `(m, size)`; or a
            list of these.
        options: dict of the method's options.
        tol: SciPy's `tol`, which sets the method's tolerances.
        callbacks: list of functions, each called as `callback(iteration, logs)`
            after each accepted iteration, and of Keras callbacks that need no
            model. If a function returns true, the session ends.
        verbose: 0 for silence, 1 for a live line, 2 for a line an iteration,
            3 for one with the numbers of the method.
            `"auto"` is 1 in a terminal or a notebook, and 0 elsewhere.
        max_evals: the most evaluations of the loss (and its gradient).
        max_seconds: the most seconds, kept to within one evaluation.
        target_loss: the loss at which to end.
        resume: whether to go on with the curvature that `method`, an optimizer
            of kormos' own, has of its latest run.

    Returns:
        A result as of `kormos.minimize`, with the final point in `theta`.

    Raises:
        ValueError: if an argument cannot be used.

    Example:

    ```python
    class Paraboloid:
        size = 3

        def value_and_grad(self, theta):
            return ((theta - 1) ** 2).sum(), 2 * (theta - 1)

    result = kormos.solve(Paraboloid(), np.zeros(3))
    print(result.theta)
    ```
    """
    optimizer = optimizers.get(method)
    stages = stages_of(
        "solve", optimizer, max_iterations, options=options, tol=tol
    )
    if any(stage.assigns for stage in stages):
        raise ValueError(
            "Keras' own optimizers update variables, and `kormos.solve` has "
            "a vector: use `kormos.minimize`, or a `Chain` of methods of "
            f"kormos. Received: method='{optimizer.name}'"
        )
    budget = checked_budget(max_evals, max_seconds, target_loss)
    observer = TraceObserver(
        stages,
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
            lambda: (given, None),
            bounds,
            vector_constraints(constraints),
        ),
        observer,
        budget=budget,
        resume=resume,
    )()
    result.theta = given.initial_position()
    return result
