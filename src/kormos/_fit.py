"""`kormos.fit`: checks its arguments, reads the data and runs a session."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kormos import optimizers
from kormos.checks import check_count
from kormos.data import reading
from kormos.data.datasets import is_dataset
from kormos.data.datasets import needs_steps
from kormos.data.rows import RowReader
from kormos.data.rows import Rows
from kormos.float64.evaluation import check_precision
from kormos.inspection.check import check as check_objective
from kormos.inspection.choice import choose
from kormos.inspection.report import Report
from kormos.objective import Objective
from kormos.objective.fixed import with_fixed
from kormos.objective.keras_model.initial_weights import draw_weights
from kormos.optimizers.auto import Auto
from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.names import check_settings
from kormos.optimizers.stage import Stage
from kormos.processes import apart
from kormos.processes import current
from kormos.processes import processes_of
from kormos.processes import shared
from kormos.session import race
from kormos.session.keras_observer import KerasObserver
from kormos.session.run import checked_budget
from kormos.session.sharing import share_values
from kormos.session.task import Task
from kormos.types import Vector
from kormos.warn import warn


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
    """Fits a compiled Keras model on all of its data at once.

    It minimizes what `model.evaluate` reports on the training data. The model
    never ends worse than it began, and it is left at the final iterate of the
    optimizer, or at the best one after an error or an interrupt.

    Args:
        model: any compiled `keras.Model`.
        x: inputs: arrays, tensors, pandas objects, or dicts, lists and tuples
            of these; or a `tf.data.Dataset`, `keras.utils.PyDataset` or torch
            `DataLoader`, which is read once, to its end, and kept in memory
            unless `stream=True`.
        y: targets, unless `x` is a data set.
        batch_size: the most rows in memory at once. It changes memory and
            speed, never the result.
        epochs: the number of the last epoch; from `initial_epoch` on, an
            epoch is `steps_per_epoch` accepted iterations of the optimizer.
            Defaults to the optimizer's own `epochs`, or 20.
        verbose: 0 for silence, 1 for a live line, 2 for a line an epoch.
            3 adds the numbers of the method, such as `damping`. `"auto"` is 1.
        callbacks: Keras callbacks, called once an epoch with the weights of
            that iterate. After `stop_training` is set, the fit ends. A
            `kormos.callbacks.Resample` among them draws new rows.
        validation_split: share of the rows, taken from the end, to validate
            on instead.
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a data set.
        shuffle: ignored, for the order of the rows does not matter.
        class_weight: dict from a class's number to its weight.
        sample_weight: weights of the rows.
        initial_epoch: the number at which to start counting epochs.
        steps_per_epoch: accepted iterations to an epoch. Defaults to 1. Of a
            data set that does not tell how long it is: how many batches to
            take, as the data of every iteration; an epoch is then one.
        validation_steps: how many batches to take of `validation_data` that
            does not tell how long it is. `None` for any other, of which all
            is used.
        validation_batch_size: as `batch_size`, for validation.
        validation_freq: validate every so many epochs, or in a list of
            epochs, counted from 1.
        optimizer: a `BatchOptimizer` or a name. Defaults to the one that the
            model is compiled with, or `"lbfgs"` if that is not of kormos.
        training: whether layers behave as in training. Every seed is then
            frozen for the length of the fit. Batch normalization takes the
            averages of each `batch_size` rows, and keeps them for inference.
        bounds: replaces the optimizer's `bounds`.
        fixed: as `kormos.minimize` takes it. `kormos.summary` takes it again.
        constraints: replaces the optimizer's `constraints`.
        max_evals: the most evaluations of the loss (and its gradient).
        max_seconds: the most seconds, kept to within one evaluation.
        target_loss: the loss at which to end.
        resume: whether to go on with the curvature that the optimizer has of
            its latest fit, or of the file that the model was loaded from; for
            unchanged data and weights the iterates are those of one long fit.
            After `BackupAndRestore` restored a state, that is so anyway.
            SciPy's methods keep none, and go on from the weights only.
        restarts: the number of starts that race against one another: the
            present weights, and others that the layers' own initializers
            draw. Each is given as many evaluations, and the better half goes
            on, until one is left, which runs to its end and stays in the
            model. `history.result.restarts` tells how far each got.
        seed: of what `restarts` draws.
        precision: `"float64"` to evaluate in float64 whatever the dtype of the
            model is, which keeps its weights rounded; `"auto"` to go on so
            where float32 ends, at its noise floor or where it is not finite.
            Defaults to the model's own.
        check: whether to run `kormos.check` first, print its report (unless
            `verbose=0`) and refuse what would go wrong. `history.check` keeps
            the report.
        stream: whether to read the data again at every evaluation, a batch at
            a time, rather than once to keep them in memory and on the device:
            for data sets, or arrays on disk (`numpy.memmap`), that are larger.
            `validation_data` is read so too. The rows must be the same every
            time.
        allow_nan: whether inputs and targets may hold NaN, for a model or a
            loss that handles them.
        **settings: replace arguments of the optimizer for this fit, such as
            `method`, `options`, `tol`, `pretrain_fn` and `stochastic`.

    Returns:
        The Keras `History`. A row holds `loss`, `grad` (the 2-norm of the
        gradient; NaN for a method without), `fg_evals` and `hessp_evals`
        (evaluations and Hessian products of this fit so far), what else the
        method tells (`step`, the 2-norm of the step; `resets`, how often the
        curvature was cleared; `active`, how many parameters are held at
        bounds; `damping`, `radius` and `trials` of `"lm"`), the compiled
        metrics and `val_*`.
        `history.iterations` is a dict of lists with an entry for every
        iteration, also those inside an epoch. `history.result` says why the
        fit ended; its `success` is true at an optimum, from which a new run
        gained nothing. `history.iteration` and `history.seconds` tell how many
        iterations and how much time there were up to each row, and
        `history.val_epoch` which epochs were validated.

    Raises:
        ValueError: if an argument, the data or the model cannot be used.

    Example:

    ```python
    model.compile(optimizer="adam", loss="mse")
    history = kormos.fit(model, x, y, optimizer="lbfgs", epochs=100)
    print(history.result)
    ```
    """
    del shuffle
    share_values(model.variables)
    optimizer = _optimizer_for(model, optimizer, resume)
    budget = checked_budget(max_evals, max_seconds, target_loss)
    check_precision(precision)
    check_settings(fit, optimizer, settings)
    stages = optimizer.stages(epochs, **settings)
    batch_size = optimizer.batch_size if batch_size is None else batch_size
    _check_batch_sizes(stages, batch_size, validation_batch_size)
    _check_steps(steps_per_epoch, validation_steps, validation_data)
    _check_split(x, validation_split, validation_data, stream)
    batches = steps_per_epoch if needs_steps(x) else None

    def observer_of(stages: Sequence[Stage]) -> KerasObserver:
        return KerasObserver(
            model,
            stages,
            callbacks,
            verbose,
            initial_epoch,
            1 if batches else steps_per_epoch or 1,
            validation_freq,
            own_limit=epochs is not None or optimizer.epochs is not None,
        )

    observer = observer_of(stages)
    validation_batch_size = validation_batch_size or batch_size
    read = RowReader(reading.dtype_for(model, precision), stream, allow_nan)
    train = read.training(x, y, sample_weight, batch_size, batches)
    validation: Rows | None
    if validation_split:
        train, validation = train.split(validation_split, validation_batch_size)
    else:
        validation = read.validation(
            validation_data, validation_batch_size, validation_steps
        )
    train = train.weighted(class_weight, read.dtype)
    objectives = _Objectives(
        model, stages, train, validation, training, precision
    )
    if fixed is not None:
        given = optimizer.bounds if bounds is None else bounds
        bounds = with_fixed(given, fixed, model.trainable_variables)
    task = Task(optimizer, objectives, bounds, constraints, model)
    if isinstance(optimizer, Auto):
        choose(optimizer, task, is_timed=max_seconds is not None)
        stages = optimizer.stages(epochs, **settings)
        objectives.stages, observer = stages, observer_of(stages)
        if verbose and current().is_first:
            print(optimizer.choice)
    report = objectives.check(verbose) if check else None

    def drawn(rng: np.random.Generator) -> Vector:
        packing = task.objective.program.packing
        return packing.join_arrays(draw_weights(model, rng))

    race.run(
        optimizer,
        stages,
        task,
        observer,
        budget=budget,
        resume=resume,
        restarts=race.Restarts(restarts, None, seed, drawn, bool(verbose)),
    )
    model.history.check = report
    return model.history


class _Objectives:
    """Makes the objectives of a fit, for the variables as they are.

    Args:
        model: the model.
        stages: the stages of the fit.
        train: the rows to train on.
        validation: the rows to validate on, or `None`.
        training: whether layers behave as in training.
        precision: as `fit` takes it.
    """

    def __init__(
        self,
        model: keras.Model,
        stages: Sequence[Stage],
        train: Rows,
        validation: Rows | None,
        training: bool,
        precision: str | None,
    ):
        self._model = model
        self.stages = stages
        self._train = train
        self._validation = validation
        self._training = training
        self._precision = precision

    def __call__(self) -> tuple[Objective, Objective | None]:
        """Makes those of training and of validation."""
        model, precision = self._model, self._precision
        with_jacobian = any(
            stage.uses_jacobian and not stage.uses_batches
            for stage in self.stages
        )
        objective = Objective(
            model,
            self._train.samples,
            batch_size=self._train.batch_size,
            training=self._training,
            with_jacobian=with_jacobian,
            precision=precision,
        )
        objective.measure()
        if self._validation is None:
            return objective, None
        samples, batch_size = self._validation
        return objective, Objective(
            model, samples, batch_size=batch_size, precision=precision
        )

    def check(self, verbose: int | str) -> Report:
        """Runs `kormos.check`, and refuses what would go wrong.

        Args:
            verbose: whether to print the report.
        """
        precision = self._precision
        with apart():
            report = check_objective(
                self._model,
                self._train.samples,
                batch_size=self._train.batch_size,
                training=self._training,
                precision=None if precision == "auto" else precision,
                hessian=any(stage.uses_hessian for stage in self.stages),
            )
        if verbose and current().is_first:
            print(report)
        report.raise_if_fatal()
        return report


def _optimizer_for(
    model: keras.Model, optimizer: Any, resume: bool
) -> BatchOptimizer:
    """The optimizer of a fit; it warns of one that cannot resume."""
    if optimizer is None:
        optimizer = getattr(model, "optimizer", None)
        if not isinstance(optimizer, BatchOptimizer):
            optimizer = "lbfgs"
    optimizer = optimizers.get(optimizer)
    if resume and not optimizer.keeps_state:
        warn(
            f"Optimizer '{optimizer.name}' keeps no curvature: the fit goes "
            "on from the weights only.",
        )
    return optimizer


def _check_batch_sizes(
    stages: Sequence[Stage],
    batch_size: int | None,
    validation_batch_size: int | None,
) -> None:
    for name, value in (
        ("batch_size", batch_size),
        ("validation_batch_size", validation_batch_size),
    ):
        if value is not None:
            check_count(name, value, 1)
    is_stochastic = any(s.uses_batches and not s.assigns for s in stages)
    if batch_size is None and is_stochastic:
        raise ValueError(
            "Argument `stochastic=True` takes a step on each batch of rows: "
            "give `batch_size`. Received: batch_size=None"
        )


def _check_steps(
    steps_per_epoch: int | None,
    validation_steps: int | None,
    validation_data: Any,
) -> None:
    if validation_steps is not None and not needs_steps(validation_data):
        raise ValueError(
            "Validation uses all of its data: leave `validation_steps` out. "
            f"Received: validation_steps={validation_steps}"
        )
    for name, value in (
        ("steps_per_epoch", steps_per_epoch),
        ("validation_steps", validation_steps),
    ):
        if value is not None:
            check_count(name, value, 1)


def _check_split(
    x: Any, validation_split: float, validation_data: Any, stream: bool
) -> None:
    if not validation_split:
        return
    if validation_data is not None:
        raise ValueError(
            "Give `validation_split` or `validation_data`, not both. "
            f"Received: validation_split={validation_split}"
        )
    if is_dataset(x) or stream:
        raise ValueError(
            "Argument `validation_split` cuts arrays in memory only; give "
            "`validation_data`. Received: "
            + ("stream=True" if stream else f"x of type {type(x).__name__}")
        )
