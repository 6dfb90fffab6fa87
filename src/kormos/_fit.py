"""`kormos.fit`: checks its arguments, reads the data and runs a session."""

import functools
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kormos import optimizers
from kormos.data import reading
from kormos.data.datasets import needs_steps
from kormos.data.rows import RowReader
from kormos.data.rows import Rows
from kormos.float64.choice import check_precision
from kormos.inspection.check import check as check_objective
from kormos.inspection.choice import choose
from kormos.inspection.report import Report
from kormos.objective.keras_model.initial_weights import draw_weights
from kormos.objective.keras_model.model_checks import check_model
from kormos.optimizers.auto import Auto
from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.names import check_settings
from kormos.optimizers.stage import Stage
from kormos.processes import apart
from kormos.processes import current
from kormos.processes import processes_of
from kormos.processes import shared
from kormos.session import race
from kormos.session.attachment import check_resume
from kormos.session.fit_arguments import check_batch_sizes
from kormos.session.fit_arguments import check_split
from kormos.session.fit_arguments import check_steps
from kormos.session.keras_observer import KerasObserver
from kormos.session.model_objectives import ModelObjectives
from kormos.session.run import checked_budget
from kormos.session.sharing import share_values
from kormos.session.task import Task
from kormos.types import Vector


@shared(lambda model, *args, **kwargs: processes_of(model))
def fit(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: Any = None,
    verbose: int | str = "auto",
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = False,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: Any = 1,
    *,
    optimizer: Any = None,
    training: bool = False,
    bounds: Any = None,
    fixed: Any = None,
    constraints: Any = None,
    max_evals: int | None = None,
    max_seconds: float | None = None,
    target_loss: float | None = None,
    resume: bool = False,
    restarts: int | None = None,
    seed: int = 0,
    precision: str | None = None,
    check: bool = False,
    stream: bool = False,
    allow_nan: bool = False,
    **settings: Any,
) -> keras.callbacks.History:
    """Fits a compiled Keras model on all of its training data at once.

    The optimizer minimizes the loss that `model.evaluate` reports on the
    training data. With masks that hide parts of rows, or a sum over a batch,
    that depends on the `batch_size` of `evaluate`: the loss is what it reports
    with all rows in one batch. The model keeps the best point that was found
    (the last one of a stage with Keras' own optimizers), also after an error or
    an interrupt. It does not end with a higher loss than
    it started with, unless the start violates constraints, or with the
    penalties of `regularization="evidence"`.

    Args:
        model: A compiled `keras.Model`, of any kind.
        x: Inputs: NumPy arrays, tensors, pandas objects, or dicts, lists and
            tuples of these, with one row per sample. It can also be a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or a torch
            `DataLoader`, which is read once, to its end, and kept in memory
            unless `stream=True`.
        y: Targets, as `x`. Leave it out if `x` is a dataset.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time. It changes memory use and speed. It does not change
            the result, unless the loss itself mixes the rows of a batch.
            Defaults to the optimizer's own `batch_size`, or to a size that
            kormos chooses.
        epochs: Integer, the number of the last epoch. An epoch is
            `steps_per_epoch` accepted iterations of the optimizer. Defaults to
            the optimizer's own `epochs`, or 20.
        verbose: `0` for silence, `1` for a live line, `2` for one line per
            epoch, `3` for one line per epoch that includes the numbers of the
            method, such as `damping`. `"auto"`, the default, means `1`.
        callbacks: List of Keras callbacks. They are called once per epoch, with
            the weights of that iterate in the model. The fit ends when one of
            them sets `stop_training`. A `kormos.callbacks.Resample` in the list
            draws new rows.
        validation_split: Float between 0 and 1, the share of the rows to
            validate on instead of training on them. They are taken from the
            end. Defaults to `0.0`.
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a dataset.
        shuffle: Ignored, because the order of the rows does not matter.
        class_weight: Dict that maps class indices to weights.
        sample_weight: Weights of the rows, an array of shape `(rows,)`.
        initial_epoch: Integer, the number from which epochs are counted.
            Defaults to `0`.
        steps_per_epoch: Integer, the number of accepted iterations in an epoch.
            Defaults to `1`. For a dataset of unknown length it is instead the
            number of batches to read, which are the data of every iteration;
            an epoch is then one iteration.
        validation_steps: Integer, the number of batches to read from
            `validation_data` of unknown length. Leave it at `None` for any
            other `validation_data`, all of which is used.
        validation_batch_size: The `batch_size` for validation. Defaults to
            `batch_size`.
        validation_freq: Integer, the number of epochs between two validations;
            or a list of the epochs with a validation, counted from 1. Defaults
            to `1`.
        optimizer: A `kormos.optimizers.BatchOptimizer` or the name of one.
            Defaults to the optimizer that the model was compiled with or, if
            that is not one of kormos' optimizers, to `"lbfgs"`.
        training: Boolean, whether layers run in training mode. All random
            seeds are then frozen during the fit. Batch normalization uses the
            averages of each chunk of `batch_size` rows, and stores them for
            inference. Defaults to `False`.
        bounds: Bounds of the weights, in place of the optimizer's `bounds`.
            See `kormos.minimize`.
        fixed: Weights that keep their values. See `kormos.minimize`. Pass the
            same value to `kormos.summary`.
        constraints: Constraints, in place of the optimizer's `constraints`.
        max_evals: Integer, the largest number of evaluations of the loss (with
            or without its gradient).
        max_seconds: Float, the largest number of seconds. The fit may exceed it
            by the time of one evaluation.
        target_loss: Float. The fit ends when the loss is this low, at a point
            where the constraints hold. Defaults to `None`, like the two limits
            before it: no limit.
        resume: Boolean, whether to continue with the curvature that the
            optimizer has stored since its last fit, or that was saved in the
            file from which the model was loaded. If data and weights have not
            changed, the iterates are the same as those of one long fit. SciPy's
            methods store no curvature, and continue from the weights only.
            After `BackupAndRestore` has restored a state, the fit always
            continues from it. Defaults to `False`.
        restarts: Integer, the number of starting points that compete: the
            present weights, and weights drawn by the initializers of the
            layers. All starts get the same number of evaluations. Then the
            half with the lower losses continues, until one is left. That one
            runs to its end, and its weights stay in the model.
            `history.result.restarts` says how far each start got.
        seed: Integer, the random seed of `restarts`. Defaults to `0`.
        precision: `"float64"` to evaluate in float64 whatever the dtype of the
            model is; the weights that the model stores are then rounded.
            `"auto"` to begin in the model's dtype, and to continue in float64
            once float32 cannot lower the loss any further or is not finite.
            Defaults to the model's own dtype.
        check: Boolean, whether to run `kormos.check` first, print its report
            (unless `verbose=0`), and raise an error if the fit would go wrong.
            `history.check` keeps the report. Defaults to `False`.
        stream: Boolean, whether to read the data batch by batch at every
            evaluation instead of keeping them in memory and on the device. Use
            it for datasets, or arrays on disk (`numpy.memmap`), that do not fit
            into memory. It applies to `validation_data` too. The rows must be
            the same every time. Defaults to `False`.
        allow_nan: Boolean, whether inputs and targets may contain NaN, for a
            model or a loss that handles them. Defaults to `False`.
        **settings: Arguments of the optimizer to replace for this fit, such as
            `method`, `options`, `tol`, `pretrain_fn` and `stochastic`.

    Returns:
        A Keras `History`, a `kormos.session.history.History`. Each of its rows
        holds:

        - `loss`, and `grad`, the 2-norm of the gradient, or NaN for a method
          that uses none;
        - `fg_evals` and `hessp_evals`, the numbers of evaluations and of
          Hessian products since the start of the fit;
        - the numbers of the method: `step`, the 2-norm of the step; `resets`,
          how often the curvature was cleared; `active`, how many parameters
          are at bounds; `damping`, `radius` and `trials` of `"lm"`;
        - the compiled metrics, and `val_*` for validation.

        `history.iterations` is a dict of lists with one entry per iteration,
        including those inside an epoch. `history.result` is a `Result`, which
        says why the fit ended. `history.iteration` and `history.seconds` are
        the number of iterations and the seconds up to each row, and
        `history.val_epoch` lists the epochs with a validation.

    Raises:
        ValueError: If an argument, the data or the model cannot be used.

    Example:

    ```python
    x = np.linspace(-1, 1, 100)[:, None]
    y = np.sin(3 * x)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(8, "tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer="adam", loss="mse")
    history = kormos.fit(model, x, y, optimizer="lbfgs", epochs=100)
    print(history.result)
    ```
    """
    del shuffle
    check_model(model)
    share_values(model.variables)
    optimizer = _optimizer_for(model, optimizer, resume)
    budget = checked_budget(max_evals, max_seconds, target_loss)
    check_precision(precision)
    check_settings(fit, optimizer, settings)
    stages = optimizer.stages(epochs, **settings)
    batch_size = optimizer.batch_size if batch_size is None else batch_size
    check_batch_sizes(stages, batch_size, validation_batch_size)
    check_steps(steps_per_epoch, validation_steps, validation_data)
    check_split(x, validation_split, validation_data, stream)
    batches = steps_per_epoch if needs_steps(x) else None
    observer = KerasObserver(
        model,
        callbacks,
        verbose,
        initial_epoch,
        1 if batches else steps_per_epoch or 1,
        validation_freq,
        own_limit=epochs is not None or optimizer.epochs is not None,
    )
    dtype = reading.dtype_for(model, _widest(precision, stages))
    read = RowReader(dtype, stream, allow_nan)
    train = read.training(x, y, sample_weight, batch_size, batches)
    train, validation = _split(
        train,
        read,
        validation_split,
        validation_data,
        validation_batch_size or batch_size,
        validation_steps,
    )
    train = train.weighted(class_weight, read.dtype)
    objectives = ModelObjectives(
        model, stages, train, validation, training, precision
    )
    task = Task(optimizer, objectives, bounds, constraints, model, fixed)
    if isinstance(optimizer, Auto):
        choose(optimizer, task, is_timed=max_seconds is not None)
        stages = optimizer.stages(epochs, **settings)
        if verbose and current().is_first:
            print(optimizer.choice)
    report = None
    if check:
        report = _checked(model, train, training, precision, stages, verbose)
    draw = functools.partial(_drawn, model, task)
    race.run(
        optimizer,
        stages,
        task,
        observer,
        budget=budget,
        resume=resume,
        restarts=race.Restarts(restarts, None, seed, bool(verbose), draw),
    )
    model.history.check = report
    return model.history


def _drawn(model: keras.Model, task: Task, rng: np.random.Generator) -> Vector:
    """A point of weights that the initializers of the layers draw."""
    packing = task.objective.program.packing
    return packing.join_arrays(draw_weights(model, rng))


def _split(
    train: Rows,
    read: RowReader,
    share: float,
    data: Any,
    batch_size: int | None,
    steps: int | None,
) -> tuple[Rows, Rows | None]:
    """The rows to train on and those to validate on, if there are any.

    Args:
        train: the rows that were given to train on.
        read: the reader of rows.
        share: the `validation_split` of `fit`.
        data: the `validation_data` of `fit`.
        batch_size: the largest number of rows to validate on at the same time.
        steps: the `validation_steps` of `fit`.
    """
    if share:
        return train.split(share, batch_size)
    validation = read.validation(data, batch_size, steps)
    if validation and not validation.has_targets and train.has_targets:
        raise ValueError(
            "The validation data need targets, as the training data have: "
            "pass `(x, y)`, or a dataset of such pairs. Received: "
            f"validation_data of type {type(data).__name__} without targets"
        )
    return train, validation


def _checked(
    model: keras.Model,
    train: Rows,
    training: bool,
    precision: str | None,
    stages: Sequence[Stage],
    verbose: int | str,
) -> Report:
    """Checks a fit, prints the report, and refuses a fit that would go wrong.

    Args:
        model: the model.
        train: the rows to train on.
        training: see `fit`.
        precision: see `fit`.
        stages: the stages of the fit.
        verbose: whether to print the report.
    """
    with apart():
        report = check_objective(
            model,
            train.samples,
            batch_size=train.batch_size,
            training=training,
            precision=None if precision == "auto" else precision,
            hessian=any(stage.uses_hessian for stage in stages),
        )
    if verbose and current().is_first:
        print(report)
    report.raise_if_fatal()
    return report


def _optimizer_for(
    model: keras.Model, optimizer: Any, resume: bool
) -> BatchOptimizer:
    """The optimizer of a fit; warns if it cannot resume."""
    if optimizer is None:
        optimizer = getattr(model, "optimizer", None)
        if not isinstance(optimizer, BatchOptimizer):
            optimizer = "lbfgs"
    found = optimizers.get(optimizer, "optimizer")
    if resume:
        was_fitted = hasattr(getattr(model, "history", None), "result")
        check_resume(found, found is not optimizer, was_fitted)
    return found


def _widest(precision: str | None, stages: Sequence[Stage]) -> str | None:
    """The precision in which the data are read: the widest of all stages."""
    values = [precision, *(stage.loss.precision for stage in stages)]
    return next((v for v in values if v not in (None, "float32")), None)
