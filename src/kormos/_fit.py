"""Fits Keras models on all of their data at once: arguments to a loop."""

import contextlib
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from typing import cast

import keras

from kormos import optimizers
from kormos.checks import check_count
from kormos.data import reading
from kormos.data.datasets import is_dataset
from kormos.data.datasets import needs_steps
from kormos.data.memory import Data
from kormos.data.stream import Stream
from kormos.float64.evaluation import check_precision
from kormos.inspection.check import check as check_objective
from kormos.objective import Objective
from kormos.objective.bounds import moved_into_bounds
from kormos.objective.keras_model.model_checks import is_built
from kormos.optimizers.base import BatchOptimizer
from kormos.session.keras_observer import KerasObserver
from kormos.session.resample import Resample
from kormos.session.run import checked_budget
from kormos.session.session import Session
from kormos.warn import warn

_RATE_CALLBACKS = (
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
)


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
    constraints: Any = None,
    max_evals: int | None = None,
    max_seconds: float | None = None,
    target_loss: float | None = None,
    resume: bool = False,
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
            `"auto"` is 1.
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
        validation_steps: likewise, of such `validation_data`, and `None` for
            any other: validation uses all of its data.
        validation_batch_size: as `batch_size`, for validation.
        validation_freq: validate every so many epochs, or in a list of
            epochs, counted from 1.
        optimizer: a `BatchOptimizer` or a name. Defaults to the one that the
            model is compiled with, or `"l-bfgs-b"` if that is not of kormos.
        training: whether layers behave as in training. Every seed is then
            frozen for the length of the fit. Batch normalization takes the
            averages of each `batch_size` rows, and keeps them for inference.
        bounds: replaces the optimizer's `bounds`.
        constraints: replaces the optimizer's `constraints`.
        max_evals: the most evaluations of the loss (and its gradient).
        max_seconds: the most seconds, kept to within one evaluation.
        target_loss: the loss at which to end.
        resume: whether to go on with the curvature that the optimizer has of
            its latest fit, or of the file that the model was loaded from; for
            unchanged data and weights the iterates are those of one long fit.
            After `BackupAndRestore` restored a state, that is so anyway.
            SciPy's methods keep none, and go on from the weights alone.
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
            `validation_data` likewise. The rows must be the same every time.
        allow_nan: whether inputs and targets may hold NaN, for a model or a
            loss that handles them.
        **settings: replace arguments of the optimizer for this fit, such as
            `method`, `options`, `tol`, `pretrain_fn` and `stochastic`.

    Returns:
        The Keras `History`. A row holds `loss`, `grad` (the 2-norm of the
        gradient; NaN for a method without), `fg_evals` and `hessp_evals`
        (evaluations and Hessian products of this fit so far), what else the
        method tells (`step`, the 2-norm of the step; `resets`, how often the
        curvature was cleared; `damping`, `radius` and `trials` of `"lm"`), the
        compiled metrics and `val_*`.
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
    history = kormos.fit(model, x, y, optimizer="l-bfgs-b", epochs=100)
    print(history.result)
    ```
    """
    del shuffle
    if validation_steps is not None and not needs_steps(validation_data):
        raise ValueError(
            "Validation uses all of its data: leave `validation_steps` out. "
            f"Received: validation_steps={validation_steps}"
        )
    optimizer = _optimizer_for(model, optimizer)
    budget = checked_budget(max_evals, max_seconds, target_loss)
    check_precision(precision)
    if resume and not optimizer.keeps_state:
        warn(
            f"Optimizer '{optimizer.name}' keeps no curvature: the fit goes "
            "on from the weights alone.",
        )
    stages = optimizer.stages(epochs, **settings)
    callbacks = _checked_callbacks(callbacks)
    if batch_size is None:
        batch_size = optimizer.batch_size
    for name, value in (
        ("batch_size", batch_size),
        ("validation_batch_size", validation_batch_size),
        ("steps_per_epoch", steps_per_epoch),
        ("validation_steps", validation_steps),
    ):
        if value is not None:
            check_count(name, value, 1)
    check_count("initial_epoch", initial_epoch, 0)
    if batch_size is None and any(stage.uses_batches for stage in stages):
        raise ValueError(
            "Argument `stochastic=True` takes a step on each batch of rows: "
            "give `batch_size`. Received: batch_size=None"
        )
    _check_validation_freq(validation_freq)
    if validation_split:
        _check_split(x, validation_split, validation_data, stream)

    dtype = reading.dtype_for(model, precision)
    batches = None
    if needs_steps(x):
        batches, steps_per_epoch = steps_per_epoch, None
    train = reading.gather(
        x,
        y,
        sample_weight,
        dtype,
        stream,
        batch_size,
        batches,
        "steps_per_epoch",
        allow_nan,
    )
    validation: Data | Stream | None = None
    if validation_split:
        # A stream is refused above.
        train, validation = cast(Data, train).split(validation_split)
    elif validation_data is not None:
        validation = reading.gather_validation(
            validation_data,
            dtype,
            stream,
            validation_batch_size or batch_size,
            validation_steps,
            allow_nan,
        )
    train = reading.weigh(train, class_weight, dtype)

    report = None
    if check:
        report = check_objective(
            model,
            train,
            batch_size=batch_size,
            training=training,
            precision=None if precision == "auto" else precision,
            hessian=any(stage.uses_hessian for stage in stages),
        )
        if verbose:
            print(report)
        report.raise_if_fatal()

    def make_objectives() -> tuple[Objective, Objective | None]:
        objective = Objective(
            model,
            train,
            batch_size=batch_size,
            training=training,
            with_jacobian=any(
                stage.uses_jacobian and not stage.uses_batches
                for stage in stages
            ),
            precision=precision,
        )
        if validation is None:
            return objective, None
        return objective, Objective(
            model,
            validation,
            batch_size=validation_batch_size or batch_size,
            precision=precision,
        )

    # Stages may freeze and thaw layers.
    is_staged = any(stage.pretrain_fn is not None for stage in stages)
    bounds = optimizer.bounds if bounds is None else bounds

    def frozen() -> Sequence[keras.Variable]:
        return model.non_trainable_variables if is_staged else ()

    def within_bounds() -> AbstractContextManager[None]:
        if not is_built(model):
            return contextlib.nullcontext()
        return moved_into_bounds(model.trainable_variables, bounds, frozen())

    resamplers = [c for c in callbacks if isinstance(c, Resample)]
    observer = KerasObserver(
        model,
        stages,
        [c for c in callbacks if c not in resamplers],
        verbose,
        initial_epoch,
        steps_per_epoch or 1,
        validation_freq,
        own_limit=epochs is not None or optimizer.epochs is not None,
    )
    session = Session(
        optimizer,
        stages,
        make_objectives,
        observer,
        model=model,
        bounds=bounds,
        constraints=constraints,
        frozen=frozen,
        within_bounds=within_bounds,
        budget=budget,
        resume=resume,
        resamplers=resamplers,
    )
    for resampler in resamplers:
        resampler.check(session.objective)
    session()
    model.history.check = report
    return model.history


def _optimizer_for(model: keras.Model, optimizer: Any) -> BatchOptimizer:
    if optimizer is not None:
        return optimizers.get(optimizer)
    compiled = getattr(model, "optimizer", None)
    if isinstance(compiled, BatchOptimizer):
        return compiled
    return optimizers.get("l-bfgs-b")


def _check_split(
    x: Any, validation_split: float, validation_data: Any, stream: bool
) -> None:
    if validation_data is not None:
        raise ValueError(
            "Give `validation_split` or `validation_data`, not both. "
            f"Received: validation_split={validation_split}"
        )
    if is_dataset(x) or stream:
        raise ValueError(
            "Argument `validation_split` cuts arrays in memory alone; give "
            "`validation_data`. Received: "
            + ("stream=True" if stream else f"x of type {type(x).__name__}")
        )


def _check_validation_freq(value: Any) -> None:
    epochs = value if isinstance(value, (list, tuple, set)) else [value]
    for epoch in epochs:
        check_count("validation_freq", epoch, 1)


def _checked_callbacks(callbacks: Any) -> list[Any]:
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    callbacks = keras.tree.flatten(callbacks)
    callbacks = [c for c in callbacks if c is not None]
    for callback in callbacks:
        if isinstance(callback, _RATE_CALLBACKS):
            raise ValueError(
                "The optimizers of kormos have no learning rate; their line "
                "searches and trust regions choose the steps. Leave the "
                f"callback out. Received: {type(callback).__name__}"
            )
    return callbacks
