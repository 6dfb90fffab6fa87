"""`kormos.minimize`: minimizes a loss over Keras variables."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from kormos import optimizers
from kormos.checks import check_count
from kormos.checks import check_reduction
from kormos.float64.choice import check_precision
from kormos.float64.choice import precision_of_stage
from kormos.inspection.choice import choose
from kormos.objective.base import FlatObjective
from kormos.objective.bounds import moved_into_bounds
from kormos.objective.fixed import with_fixed
from kormos.objective.functions.row_losses import RowLossObjective
from kormos.objective.functions.scalar import FunctionObjective
from kormos.optimizers.auto import Auto
from kormos.optimizers.stage import LossSettings
from kormos.optimizers.stage import refuse_settings
from kormos.processes import shared
from kormos.session import race
from kormos.session.attachment import check_resume
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
    """Minimizes a loss over Keras variables, with or without a model.

    The variables hold the solution afterwards. Evaluating the loss assigns
    nothing, so `loss_fn` may also read variables that are not optimized, for
    example those of a frozen network.

    Args:
        loss_fn: Function of no arguments that computes a scalar tensor from
            the variables, with `keras.ops` or the functions of the backend.
            Convert NumPy arrays to tensors before, by
            `keras.ops.convert_to_tensor`. With `data`, it is a function of rows
            of `data` that returns the loss of each row, a tensor of shape
            `(rows,)`; or a dict of such tensors and of scalars that do not
            depend on the data, such as a penalty. The loss is then the sum of
            the means of its entries.
        variables: List of the `keras.Variable`s to optimize.
        method: A name, in any letter case, or a
            `kormos.optimizers.BatchOptimizer`. Defaults to `"lbfgs"`.
        data: Arrays in any structure of dicts, lists and tuples. A DataFrame
            counts as a dict of its columns. Arrays of the same length are
            split along their rows together. The rows are distributed over
            devices and processes in the same way as those of `kormos.fit`.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time. It changes memory use and speed, never the result.
        reduction: `"mean"`, the default, or `"sum"`, for the sum of the losses
            of the rows.
        max_iterations: Integer, the largest number of accepted iterations.
            Defaults to the method's own `epochs`, or 1000.
        bounds: Dict that maps the path of a variable, or a regular expression
            for paths, to `(low, high)`; or a list of pairs
            `(variable, (low, high))`. `low` and `high` are broadcast to the
            shape of the variable, and `None` means no bound. A
            `scipy.optimize.Bounds`, or a list of pairs, for the flat vector of
            all variables is accepted too.
        fixed: Parameters that keep their values: a dict that maps the path of a
            variable, or a regular expression for paths, to a list of flat
            indices, or to `True` for all entries; or a list of pairs
            `(variable, indices)`. The method must support bounds.
        constraints: A dict `{"type": "eq" or "ineq", "fun": fn}`, or a list of
            these. `fn` is a function of no arguments that reads the variables.
            Its values are kept at zero (`"eq"`), or at zero or above
            (`"ineq"`). A `scipy.optimize.LinearConstraint` of the flat vector
            of all variables is accepted too.
        options: Dict of options of the method.
        tol: Float, SciPy's `tol`, which sets the tolerances of the method.
        callback: Function that is called as `callback(iteration, logs)` after
            each accepted iteration, counted from 1, while the variables hold
            that iterate. `logs` is a dict with `loss`, `grad`, `fg_evals` and
            `hessp_evals`. If it returns true, the minimization ends.
        loss_callback: Function that is called as `loss_callback(loss)` after
            each evaluation of a run, but not after those that only verify its
            end.
        callbacks: List of functions like `callback`, and of Keras callbacks
            that need no model, such as `EarlyStopping`, `CSVLogger`,
            `TensorBoard` and `LambdaCallback`. For them, an iteration is an
            epoch.
        verbose: `0` for silence, `1` for a live line, `2` for one line per
            iteration, `3` for one line per iteration that includes the numbers
            of the method. `"auto"`, the default, means `1` in a terminal or a
            notebook, and `0` elsewhere.
        max_evals: Integer, the largest number of evaluations of the loss (with
            or without its gradient).
        max_seconds: Float, the largest number of seconds. The run may exceed it
            by the time of one evaluation.
        target_loss: Float. The run ends when the loss is this low, at a point
            where the constraints hold. Defaults to `None`, like the two limits
            before it: no limit.
        resume: Boolean, whether to continue with the curvature that `method`,
            an optimizer instance, has stored since its last run. Defaults to
            `False`.
        restarts: Integer, the number of starting points that compete. All
            starts get the same number of evaluations. Then the half with the
            lower losses continues, until one is left, which runs to its end.
            The first start is the present value of the variables.
            `result.restarts` says how far each start got.
        starts: The other starting points: a function `(count, rng)` that
            returns an array of shape `(count, size)` for the flat vector of
            all variables, or a list with an array of shape `(count, *shape)`
            for each variable; or such arrays. By default, starts are drawn
            uniformly from `bounds`, which must be finite.
        seed: Integer, the seed of `rng`, a `numpy.random.Generator`. Defaults
            to `0`.
        precision: `"float64"` to evaluate in float64 whatever the dtype of the
            variables is; the solution that they store is then rounded.
            `"auto"` to begin in their dtype, and to continue in float64 once
            float32 cannot lower the loss any further or is not finite.
            Defaults to the dtype of the variables.

    Returns:
        A `kormos.session.result.Result` with `status`, `message`, `success`,
        `loss`, `iterations`, `evaluations`, `time` and `history`. `success` is
        true if the run ended at an optimum, from which a new run gained
        nothing: the status is `"converged"`, or `"noise floor"` if rounding
        hides any further decrease.

    Raises:
        ValueError: If an argument cannot be used.

    Example:

    ```python
    v = keras.Variable([7.0, 7.0])
    result = kormos.minimize(
        lambda: keras.ops.sum(v**2), [v], bounds=[(v, ([1, 2], None))]
    )
    print(result.loss)  # 5.0, at v = [1, 2]
    ```
    """
    optimizer = optimizers.get(method, "method")
    if resume:
        check_resume(optimizer, optimizer is not method)
    stages = stages_of(
        "minimize", optimizer, max_iterations, options=options, tol=tol
    )
    refuse_settings("minimize", stages, ["loss_weights"])
    budget = checked_budget(max_evals, max_seconds, target_loss)
    check_precision(precision)
    bounds = optimizer.bounds if bounds is None else bounds
    bounds = with_fixed(bounds, fixed, variables)
    observer = TraceObserver(
        [callback, *(callbacks or [])] if callback else callbacks or [],
        verbose,
        own_limit=max_iterations is not None or optimizer.epochs is not None,
        is_evaluated_too=loss_callback is not None,
    )
    if data is None:
        observer.refuse_resamplers("minimize")
    share_values(variables if data is not None else [])
    with moved_into_bounds(variables, bounds):

        @functools.cache
        def objective_in(value: str | None) -> FlatObjective:
            return _objective(
                loss_fn, variables, data, batch_size, reduction, value
            )

        def objectives(settings: LossSettings) -> tuple[FlatObjective, None]:
            dtypes = [v.dtype for v in variables]
            value = precision_of_stage(settings.precision, precision, dtypes)
            return objective_in(value), None

        task = Task(optimizer, objectives, bounds, constraints)
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
            restarts=race.Restarts(restarts, starts, seed, bool(verbose)),
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
    """The loss of a function, of rows of data or without data."""
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
            "Arguments `batch_size` and `reduction` refer to rows of data: "
            f"pass these as `data`. Received: batch_size={batch_size}, "
            f"reduction={reduction!r}, data=None"
        )
    return FunctionObjective(loss_fn, variables, precision)
