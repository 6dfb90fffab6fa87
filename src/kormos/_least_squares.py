"""`kormos.least_squares`: fits residuals over Keras variables."""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras

from kormos import optimizers
from kormos.checks import check_count
from kormos.checks import check_reduction
from kormos.float64.choice import check_precision
from kormos.inspection.choice import choose
from kormos.objective.bounds import moved_into_bounds
from kormos.objective.fixed import with_fixed
from kormos.objective.functions import robust
from kormos.objective.functions.residuals import ResidualObjective
from kormos.objective.functions.sigma import over_sigma
from kormos.optimizers.auto import Auto
from kormos.optimizers.stage import Stage
from kormos.processes import shared
from kormos.session import race
from kormos.session.attachment import check_resume
from kormos.session.residual_objectives import ResidualObjectives
from kormos.session.result import Result
from kormos.session.reweigh import Reweigh
from kormos.session.run import checked_budget
from kormos.session.sharing import processes_of_data
from kormos.session.sharing import share_values
from kormos.session.task import Task
from kormos.session.trace_observer import TraceObserver
from kormos.session.trace_observer import stages_of
from kormos.statistics.results import of_residuals
from kormos.statistics.results import with_summary
from kormos.statistics.robust_scale import estimated_scales

# The iterations between two calls of a function that weighs blocks.
_REWEIGHED = 10


@shared(processes_of_data)
def least_squares(
    residual_fn: Callable[..., Any],
    variables: list[keras.Variable],
    method: Any = "lm",
    *,
    data: Any = None,
    sigma: Any = None,
    validation_data: Any = None,
    batch_size: int | None = None,
    loss: str = "linear",
    f_scale: float | str | dict[str, float] = 1.0,
    loss_weights: Any = None,
    reduction: str = "mean",
    max_iterations: int | None = None,
    bounds: Any = None,
    fixed: Any = None,
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
    nan_policy: str = "raise",
) -> Result:
    """Fits residuals over Keras variables, with or without a model.

    The loss is the mean of the squared residuals. For several blocks of
    residuals it is the weighted sum of the means of the blocks. The variables
    hold the solution afterwards.

    Args:
        residual_fn: Function that computes the residuals from the variables
            with `keras.ops`: a tensor of any shape, or a dict, list or tuple of
            tensors, the blocks. It takes `data` as its argument, or no
            arguments if there are no `data`. It may contain derivatives, for
            example by `keras.ops.jvp`. Convert NumPy arrays to tensors before,
            by `keras.ops.convert_to_tensor`.
        variables: List of the `keras.Variable`s to fit.
        method: A name, in any letter case, or a
            `kormos.optimizers.BatchOptimizer`. Defaults to `"lm"`.
        data: The points at which the residuals are evaluated: arrays in any
            structure of dicts, lists and tuples. A DataFrame counts as a dict
            of its columns. Arrays of the same length are split along their rows
            together, and a row of a block of residuals may depend only on the
            same row of each. `residual_fn` is called with chunks of the data,
            and with single rows. If `residual_fn` keeps the points itself
            instead, the Jacobian of all residuals is computed at once, which
            takes far longer for many points.
        sigma: The standard deviations of the observations, by which the
            residuals are divided: a number, or an array with one entry per row
            of `data` (without `data`: per residual). `result.summary` takes
            `absolute_sigma`, which says whether these are the true deviations
            or only relative ones.
        validation_data: Other points, at which the loss is evaluated after each
            iteration, for the `val_` columns of the history.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time. It changes memory use and speed, never the result.
        loss: The loss of a single residual: `"linear"`, the default, for its
            square; or one of the robust losses `"soft_l1"`, `"huber"`,
            `"cauchy"`, `"arctan"` and `"tukey"`.
        f_scale: The residual at which a robust loss departs from the square: a
            number, or a dict with a number for each block. `"auto"` first fits
            with `"soft_l1"`, outside of the result, and takes 1.4826 times the
            median absolute deviation of the residuals, or 4.685 times that for
            `"tukey"`. Defaults to `1.0`.
        loss_weights: Dict that maps the name of a block to its weight in the
            loss; or a function `(iteration, residuals)` that returns such a
            dict, and is called at the start and every ten iterations. See
            `kormos.callbacks.Reweigh`.
        reduction: `"mean"`, the default, or `"sum"`, for sums in place of the
            means.
        max_iterations: Integer, the largest number of accepted iterations.
            Defaults to the method's own `epochs`, or 1000.
        bounds: Bounds of the variables. See `kormos.minimize`.
        fixed: Parameters that keep their values. See `kormos.minimize`.
        callbacks: List of functions, each called as `callback(iteration, logs)`
            after each accepted iteration, counted from 1, while the variables
            hold that iterate. If one returns true, the fit ends. A
            `kormos.callbacks.Resample` in the list replaces the data. Keras
            callbacks that need no model, such as `EarlyStopping`, `CSVLogger`,
            `TensorBoard` and `LambdaCallback`, are accepted too. For them, an
            iteration is an epoch.
        verbose: `0` for silence, `1` for a live line, `2` for one line per
            iteration, `3` for one line per iteration that includes the numbers
            of the method. `"auto"`, the default, means `1` in a terminal or a
            notebook, and `0` elsewhere.
        max_evals: Integer, the largest number of evaluations of the residuals
            (with or without their derivatives).
        max_seconds: Float, the largest number of seconds. The fit may exceed it
            by the time of one evaluation.
        target_loss: Float. The fit ends when the loss is this low. Defaults
            to `None`, like the two limits before it: no limit.
        resume: Boolean, whether to continue with the state that `method`, an
            optimizer instance, has stored since its last run. Defaults to
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
        nan_policy: What to do about NaN in the data. `"raise"`, the default,
            raises an error if NaN makes residuals non-finite, which
            `residual_fn` may prevent. `"omit"` leaves out points with NaN.

    Returns:
        A `kormos.session.result.Result`, as `kormos.minimize` returns. If there
        are several blocks, its `history` has a column `<name>_loss` for each:
        the mean (or sum) of the block, without its weight.

    Raises:
        ValueError: If an argument cannot be used.

    Example:

    ```python
    x = np.linspace(0.0, 1.0, 20)
    y = 2 * np.exp(-3 * x)
    b = keras.Variable([1.0, 1.0])
    result = kormos.least_squares(
        lambda data: b[0] * keras.ops.exp(-b[1] * data["x"]) - data["y"],
        [b],
        data={"x": x, "y": y},
    )
    print(keras.ops.convert_to_numpy(b))  # [2. 3.]
    ```
    """
    _check_choices(loss, reduction, nan_policy, batch_size)
    if sigma is not None:
        _refuse_validation_data(validation_data)
        residual_fn, data = over_sigma(residual_fn, data, sigma)
    optimizer = optimizers.get(method, "method")
    if resume:
        check_resume(optimizer, optimizer is not method)
    stages = stages_of("least_squares", optimizer, max_iterations)
    budget = checked_budget(max_evals, max_seconds, target_loss)
    check_precision(precision)
    follows = None
    if callable(loss_weights):
        follows, loss_weights = Reweigh(loss_weights, _REWEIGHED), None
        callbacks = [*(callbacks or []), follows]
    _check_weights(stages, callbacks or [])
    observer = TraceObserver(
        callbacks or [],
        verbose,
        own_limit=max_iterations is not None or optimizer.epochs is not None,
    )
    make = functools.partial(
        ResidualObjective,
        residual_fn,
        variables,
        loss=loss,
        loss_weights=loss_weights,
        reduction=reduction,
        batch_size=batch_size,
        with_jacobian=isinstance(optimizer, Auto)
        or any(stage.uses_jacobian for stage in stages),
        nan_policy=nan_policy,
    )
    bounds = optimizer.bounds if bounds is None else bounds
    bounds = with_fixed(bounds, fixed, variables)
    share_values(variables)
    with moved_into_bounds(variables, bounds):
        if isinstance(f_scale, str) and f_scale == "auto":
            f_scale = estimated_scales(
                make, data, precision, loss, stages, bounds
            )
        objectives = ResidualObjectives(
            functools.partial(make, f_scale=f_scale),
            data,
            validation_data,
            precision,
            loss_weights,
            follows,
        )
        task = Task(optimizer, objectives, bounds)
        if isinstance(optimizer, Auto):
            choose(optimizer, task, has_residuals=True)
            stages = stages_of("least_squares", optimizer, max_iterations)
        result = race.run(
            optimizer,
            stages,
            task,
            observer,
            budget=budget,
            resume=resume,
            restarts=race.Restarts(restarts, starts, seed, bool(verbose)),
        )
    return with_summary(result, functools.partial(of_residuals, sigma), task)


def _check_weights(stages: Sequence[Stage], callbacks: Sequence[Any]) -> None:
    """Refuses weights of a stage together with those of a function."""
    own = [s.loss.loss_weights for s in stages if s.loss.loss_weights]
    if own and any(isinstance(c, Reweigh) for c in callbacks):
        raise ValueError(
            "Weights that follow the residuals (a `Reweigh`, or a function as "
            "`loss_weights`) change in all stages: leave out the "
            f"`loss_weights` of the `Chain`. Received: loss_weights={own[0]}"
        )


def _refuse_validation_data(validation_data: Any) -> None:
    if validation_data is not None:
        raise ValueError(
            "The standard deviations of `validation_data` are not known: "
            "divide the residuals by their deviations in `residual_fn`, "
            "and leave `sigma` out. Received: sigma and validation_data"
        )


def _check_choices(
    loss: Any, reduction: Any, nan_policy: Any, batch_size: Any
) -> None:
    if not isinstance(loss, str) or loss not in robust.LOSSES:
        raise ValueError(
            f"Argument `loss` must be one of {sorted(robust.LOSSES)}. "
            f"Received: loss={loss!r}"
        )
    check_reduction(reduction)
    if nan_policy not in ("raise", "omit"):
        raise ValueError(
            "Argument `nan_policy` must be 'raise' or 'omit'. "
            f"Received: nan_policy={nan_policy!r}"
        )
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
