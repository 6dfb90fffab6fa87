"""Minimizes a loss over variables."""

from collections.abc import Callable
from typing import Any

import keras

from kormos import optimizers
from kormos.checks import check_count
from kormos.checks import check_reduction
from kormos.float64.evaluation import check_precision
from kormos.inspection.choice import choose
from kormos.objective.base import FlatObjective
from kormos.objective.bounds import moved_into_bounds
from kormos.objective.fixed import with_fixed
from kormos.objective.functions.row_losses import RowLossObjective
from kormos.objective.functions.scalar import FunctionObjective
from kormos.optimizers.auto import Auto
from kormos.processes import shared
from kormos.session import race
from kormos.session.result import Result
from kormos.session.run import checked_budget
from kormos.session.sharing import processes_of_data
from kormos.session.sharing import share_values
from kormos.session.task import Task
from kormos.session.trace_observer import TraceObserver
from kormos.session.trace_observer import stages_of
from kormos.statistics.results import of_loss
from kormos.statistics.results import with_summary


@shared(processes_of_data)
def minimize(
    loss_fn: Callable[..., Any],
    variables: list[keras.Variable],
    method: Any = "lbfgs",
    *,
    data: Any = None,
    batch_size: int | None = None,
    reduction: str = "mean",
    max_iterations: int | None = None,
    bounds: Any = None,
    fixed: Any = None,
    constraints: Any = None,
    options: dict[str, Any] | None = None,
    tol: float | None = None,
    callback: Callable[[int, dict[str, Any]], object] | None = None,
    loss_callback: Callable[[float], object] | None = None,
    callbacks: Any = None,
    verbose: int | str = "auto",
    max_evals: int | None = None,
    max_seconds: float | None = None,
    target_loss: float | None = None,
    resume: bool = False,
    restarts: int | None = None,
    starts: Any = None,
    seed: int = 0,
    precision: str | None = None,
) -> Result:
    """Minimizes a loss over Keras variables, of models or free ones.

    The variables keep the solution. While a loss is evaluated nothing is
    assigned, so `loss_fn` may read any other variables, of a frozen network
    for instance.

    Args:
        loss_fn: function of no arguments that computes a scalar tensor from
            variables with `keras.ops` or the backend's functions. Make tensors
            of NumPy arrays first, by `keras.ops.convert_to_tensor`. With
            `data`, it is a function of rows of these, and returns the loss of
            each, `(rows,)`; or a dict of such tensors and of scalars that
            depend on no data, a penalty say, whose means are added up.
        variables: list of the `keras.Variable`s to optimize.
        method: a name, in any letter case, or a `BatchOptimizer`. Defaults to
            `"lbfgs"`.
        data: arrays in any structure, of which a DataFrame is a dict by its
            columns. Arrays of equal length belong together. The rows are
            spread over devices and processes, as those of `fit` are.
        batch_size: the most rows in memory at once. It changes memory and
            speed, never the result.
        reduction: `"mean"`, or `"sum"` for the sum of the losses of rows.
        max_iterations: the most accepted iterations. Defaults to 1000.
        bounds: dict from a variable's path, or a regular expression on paths,
            to `(low, high)`; or a list of pairs `(variable, (low, high))`.
            Each broadcasts to the variable's shape, and `None` is no bound.
            SciPy's bounds of the flat vector of all variables do as well.
        fixed: parameters that keep their values: dict from a variable's path,
            or a regular expression on paths, to a list of flat indices, or
            `True` for all of its entries; or a list of pairs `(variable,
            indices)`. The method must take bounds.
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
        callbacks: list of functions as `callback`, and of Keras callbacks that
            need no model, such as `EarlyStopping`, `CSVLogger`, `TensorBoard`
            and `LambdaCallback`; an iteration is an epoch to them.
        verbose: 0 for silence, 1 for a live line, 2 for a line an iteration,
            3 for one with the numbers of the method.
            `"auto"` is 1 in a terminal or a notebook, and 0 elsewhere.
        max_evals: the most evaluations of the loss (and its gradient).
        max_seconds: the most seconds, kept to within one evaluation.
        target_loss: the loss at which to end.
        resume: whether to go on with the curvature that `method`, an
            optimizer of kormos' own, has of its latest run.
        restarts: the number of starts that race against one another: each is
            given as many evaluations, and the better half goes on, until one
            is left, which runs to its end. What the variables hold is the
            first start. `result.restarts` tells how far each got.
        starts: where the others come from: a function `(count, rng)` that
            returns an array of shape `(count, size)`, of all variables in
            order, or an array of shape `(count, *shape)` for each variable;
            or such arrays. Defaults to points drawn from finite `bounds`.
        seed: of `rng`, a `numpy.random.Generator`.
        precision: `"float64"` to evaluate in float64 whatever the dtype of the
            variables is, which keep the solution rounded; `"auto"` to go on so
            where float32 ends, at its noise floor or where it is not finite.
            Defaults to the variables' own.

    Returns:
        A result with `status`, `message`, `success`, `loss`, `iterations`,
        `evaluations`, `time` and `history`. `success` is true at an optimum,
        from which a new run gained nothing: of `"converged"` and of
        `"noise floor"`, where rounding hides what is left.

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
    stages = stages_of(
        "minimize", optimizer, max_iterations, options=options, tol=tol
    )
    budget = checked_budget(max_evals, max_seconds, target_loss)
    check_precision(precision)
    bounds = optimizer.bounds if bounds is None else bounds
    bounds = with_fixed(bounds, fixed, variables)
    observer = TraceObserver(
        stages,
        [callback, *(callbacks or [])] if callback else callbacks or [],
        verbose,
        own_limit=max_iterations is not None or optimizer.epochs is not None,
        is_evaluated_too=loss_callback is not None,
    )
    if data is None:
        observer.refuse_resamplers("minimize")
    share_values(variables if data is not None else [])
    with moved_into_bounds(variables, bounds):
        objective = _objective(
            loss_fn, variables, data, batch_size, reduction, precision
        )
        task = Task(optimizer, lambda: (objective, None), bounds, constraints)
        if isinstance(optimizer, Auto):
            choose(optimizer, task)
            stages = stages_of("minimize", optimizer, max_iterations)
        result = race.run(
            optimizer,
            stages,
            task,
            observer,
            budget=budget,
            resume=resume,
            restarts=race.Restarts(restarts, starts, seed),
            loss_callback=loss_callback,
        )
    return with_summary(result, of_loss, task)


def _objective(
    loss_fn: Callable[..., Any],
    variables: list[keras.Variable],
    data: Any,
    batch_size: int | None,
    reduction: str,
    precision: str | None,
) -> FlatObjective:
    """The loss of a function, of rows of data or of none."""
    check_reduction(reduction)
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    if data is not None:
        return RowLossObjective(
            loss_fn,
            variables,
            data,
            reduction=reduction,
            batch_size=batch_size,
            with_jacobian=False,
            precision=precision,
        )
    if batch_size is not None or reduction != "mean":
        raise ValueError(
            "Arguments `batch_size` and `reduction` speak of rows: give these "
            f"as `data`. Received: batch_size={batch_size}, "
            f"reduction={reduction!r}, data=None"
        )
    return FunctionObjective(loss_fn, variables, precision)
