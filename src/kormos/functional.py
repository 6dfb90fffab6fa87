"""Minimizes any loss over any variables."""

import time

from kormos import optimizers
from kormos.numerics import stopping
from kormos.objective.checks import check_hessian_products
from kormos.objective.checks import warn_of_unused_variables
from kormos.objective.function import FunctionObjective
from kormos.objective.limits import resolve_bounds
from kormos.objective.limits import resolve_constraints
from kormos.optimizers.problem import Constraint
from kormos.optimizers.problem import Problem
from kormos.run import Run
from kormos.run import checked_budget
from kormos.run import describe
from kormos.run import row
from kormos.run import warn_of_convergence

DEFAULT_ITERATIONS = 1000

# Iterations in one compiled call of the methods that can.
_STRIDE = 50


def minimize(
    loss_fn,
    variables,
    method="l-bfgs-b",
    *,
    max_iterations=None,
    bounds=None,
    constraints=None,
    options=None,
    tol=None,
    callback=None,
    loss_callback=None,
    max_evals=None,
    max_seconds=None,
    target_loss=None,
    resume=False,
):
    """Minimizes a loss over Keras variables, of models or free ones.

    The variables keep the solution. While a loss is evaluated nothing is
    assigned, so `loss_fn` may read any other variables, of a frozen network
    for instance.

    Args:
        loss_fn: function of no arguments that computes a scalar tensor from
            variables with `keras.ops` or the backend's functions. Make tensors
            of NumPy arrays first, by `keras.ops.convert_to_tensor`.
        variables: list of the `keras.Variable`s to optimize.
        method: a name, in any letter case, or a `BatchOptimizer`.
        max_iterations: the most accepted iterations. Defaults to 1000.
        bounds: dict from a variable's path, or a regular expression on paths,
            to `(low, high)`; or a list of pairs `(variable, (low, high))`.
            Each broadcasts to the variable's shape, and `None` is no bound.
        constraints: a dict `{"type": "eq" or "ineq", "fun": fn}` or a list of
            these, with `fn` a function of no arguments that reads variables;
            its values are held at zero, or at zero and above.
        options: dict of the method's options.
        tol: SciPy's `tol`, which sets the method's tolerances.
        callback: called as `callback(iteration, logs)` after each accepted
            iteration, counted from 1, with the variables at that iterate and
            `logs` a dict of `loss`, `grad`, `fg_evals` and `hessp_evals`. If
            it returns true, the minimization ends.
        loss_callback: called as `loss_callback(loss)` after each evaluation.
        max_evals: the most evaluations of the loss (and its gradient).
        max_seconds: the most seconds, kept to within one evaluation.
        target_loss: the loss at which to end.
        resume: whether to go on with the curvature that `method`, an
            optimizer of kormos' own, has of its latest run.

    Returns:
        A result with `status`, `message`, `success`, `loss`, `iterations`,
        `evaluations`, `time` and `history`.

    Raises:
        ValueError: if an argument cannot be used.

    Example:

    ```python
    v = keras.Variable([7.0, 7.0])
    result = kormos.minimize(
        lambda: keras.ops.sum(v**2), [v], bounds=[(v, ([1, 2], None))]
    )
    ```
    """
    optimizer = optimizers.get(method)
    if max_iterations is None:
        max_iterations = optimizer.epochs
    if max_iterations is None:
        max_iterations = DEFAULT_ITERATIONS
    stages = optimizer.stages(max_iterations, options=options, tol=tol)
    if len(stages) != 1 or stages[0].pretrain_fn is not None:
        raise ValueError(
            "`kormos.minimize` runs one stage without `pretrain_fn`; call it "
            f"once a stage. Received: {len(stages)} stages"
        )
    stage = stages[0]
    budget = checked_budget(max_evals, max_seconds, target_loss, stage.epochs)
    objective = FunctionObjective(loss_fn, variables)
    packing = objective.program.packing
    lower, upper = resolve_bounds(
        optimizer.bounds if bounds is None else bounds, packing
    )
    resolved = resolve_constraints(
        optimizer.constraints if constraints is None else constraints,
        packing,
        Constraint,
    )
    stage.check(objective.size, lower is not None, [c.type for c in resolved])
    begun = time.perf_counter()
    problem = Problem(
        objective,
        lower,
        upper,
        constraints=resolved,
        epsilon=objective.epsilon,
        budget=budget.started(begun),
        # A callback looks at every iterate.
        stride=1 if callback else _STRIDE,
        resume=resume,
        on_evaluation=loss_callback,
    )
    theta = problem.project(objective.initial_position())
    if stage.uses_hessian:
        check_hessian_products(objective, theta, problem.project)
    recorder = _Recorder(objective, problem, stage.epochs, callback, begun)
    run = Run(stage, problem, recorder.start, recorder.iterate)
    try:
        outcome = run(theta)
    except BaseException:
        objective.assign(run.best[0])
        raise
    objective.assign(outcome.theta)
    if optimizer.solver_state is not None:
        optimizer.solver_state.position = outcome.theta
    if outcome.status is None:
        outcome.status = (
            stopping.STOPPED_BY_CALLBACK
            if recorder.stopped
            else stopping.ITERATION_LIMIT
        )
    if outcome.raw is not None:
        optimizer.results = [outcome.raw]
    result = describe(
        outcome,
        run.initial_loss,
        run.iterations,
        problem.fg_evals,
        problem.hessp_evals,
        time.perf_counter() - recorder.start_time,
    )
    result.history = recorder.history
    if result.status not in stopping.QUIET:
        warn_of_convergence(str(result))
    return result


class _Recorder:
    """Keeps the history of a minimization and calls the user's callback."""

    def __init__(self, objective, problem, most, callback, start_time):
        self._objective = objective
        self._problem = problem
        self._most = most
        self._callback = callback
        self.stopped = False
        self.start_time = start_time
        names = ("loss", "grad", "fg_evals", "hessp_evals", "seconds")
        self.history = {name: [] for name in names}

    def start(self, theta, loss, grad):
        project = self._problem.project
        warn_of_unused_variables(self._objective, theta, grad, project)
        return self._most == 0

    def iterate(self, theta, loss, grad, **logs):
        problem = self._problem
        logs = row(loss, grad, problem.fg_evals, problem.hessp_evals, logs)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        self.history["seconds"].append(time.perf_counter() - self.start_time)
        iteration = len(self.history["loss"])
        if self._callback is not None:
            self._objective.assign(theta)
            self.stopped = bool(self._callback(iteration, logs))
        return self.stopped or iteration >= self._most
