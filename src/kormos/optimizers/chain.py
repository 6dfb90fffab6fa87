"""An optimizer that runs several methods one after the other."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kormos.checks import check_count
from kormos.float64.choice import PRECISIONS
from kormos.optimizers.base import DEFAULT_EPOCHS
from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.base import check_epochs
from kormos.optimizers.stage import LossSettings
from kormos.optimizers.stage import Stage
from kormos.solvers.keras_steps import KerasSteps

# The loss must fall by this part of itself within `patience` epochs. Our
# choice.
_MIN_DELTA = 1e-3


@keras.saving.register_keras_serializable(package="kormos")
class Chain(BatchOptimizer):
    """Runs several optimizers, one after the other, in one `fit`.

    The usual recipe is Adam first, and then a method of kormos, which continues
    from the exact weights that Adam has reached. A stage is one of:

    - a name, such as `"lbfgs"`;
    - an optimizer of kormos, such as `kormos.optimizers.LBFGS(memory=50)`;
    - an optimizer of Keras, such as `keras.optimizers.Adam(1e-3)`, with or
      without a learning rate schedule. In `fit`, it trains the model by Keras'
      `train_step` on shuffled batches of `batch_size` rows. With
      `full_batch=True`, it takes one step per epoch on the loss of all rows.
      `kormos.minimize` and `kormos.least_squares` require `full_batch=True`.

    A stage ends after its number of epochs, when its own convergence tests are
    met, on a plateau (`patience`), or after its share of the time. There is one
    `History` for all stages. Its column `stage` counts them from 0. In every
    stage, `loss` is the loss of all rows at the weights of that epoch, so that
    stages can be compared.

    An argument below that is a list has one entry per stage. A value that is
    not a list applies to all stages.

    Args:
        optimizers: List of the optimizers of the stages.
        epochs: List of the number of epochs of each stage, where stages with
            `None` share equally in the rest of `fit(epochs=...)`; or an
            integer, the number of epochs of all stages together. By default, a
            stage has the `epochs` of its own optimizer, or 20. In
            `kormos.minimize` and `kormos.least_squares`, an epoch is an
            iteration.
        batch_size: Integer, the batch size of Keras' optimizers. Defaults to
            the `batch_size` of `fit`, or 32.
        full_batch: Boolean, whether Keras' optimizers take their steps on all
            rows. Defaults to `False`.
        patience: Integer, the number of epochs without an improvement after
            which a stage ends, or `None`, the default, for no such limit.
        min_delta: Float, the relative decrease of the loss that counts as an
            improvement. Defaults to 1e-3.
        share: Float between 0 and 1, the part of `max_seconds` that a stage may
            use, or `None`, the default, for no such limit.
        pretrain_fn: Function of the model that is called before a stage starts,
            for example to freeze layers or to change the loss.
        precision: The precision in which a stage evaluates the loss:
            `"float32"`, `"float64"` or `"auto"` (see `fit`), or `None`, the
            default, for the `precision` of the fit. `["float32", "float64"]`
            begins in float32, and then continues in float64.
        loss_weights: The `loss_weights` of a stage, in the form that `compile`
            or `kormos.least_squares` takes; or `None`, the default, for those
            of `compile` or `least_squares`. A list has one entry per stage,
            which may be a list itself. The model has its own `loss_weights`
            again when the fit ends. `loss` in the History is always the loss
            that the stage minimizes: compare it only between stages with the
            same weights.
        bounds: Bounds of the variables, for all stages. See `BatchOptimizer`.
        constraints: Constraints. See `BatchOptimizer`. Keras' optimizers accept
            none.
        seed: Integer, the seed for the order of the rows in the stages of
            Keras' optimizers. Defaults to `0`.
        keep_state: Where the solver's state is kept. See `BatchOptimizer`.
        name: String, the name of the optimizer.

    Attributes:
        optimizers: Sequence of the optimizers of the stages.

    Raises:
        ValueError: If a stage is not an optimizer, or lists differ in length.

    Example:

    ```python
    model.compile(
        optimizer=kormos.optimizers.Chain(
            [keras.optimizers.Adam(1e-3), "lbfgs"], epochs=[20, 50]
        ),
        loss="mse",
    )
    history = model.fit(x, y)
    ```
    """

    keeps_state = True

    def __init__(
        self,
        optimizers: Sequence[Any],
        epochs: Any = None,
        batch_size: Any = None,
        full_batch: Any = False,
        patience: Any = None,
        min_delta: Any = _MIN_DELTA,
        share: Any = None,
        pretrain_fn: Any = None,
        precision: Any = None,
        loss_weights: Any = None,
        bounds: Any = None,
        constraints: Any = None,
        seed: int = 0,
        keep_state: bool | None = None,
        name: str = "chain",
        **others: Any,
    ) -> None:
        super().__init__(
            name=name,
            epochs=epochs,
            pretrain_fn=pretrain_fn,
            bounds=bounds,
            constraints=constraints,
            keep_state=keep_state,
            **others,
        )
        if not isinstance(optimizers, (list, tuple)) or not optimizers:
            raise ValueError(
                "Argument `optimizers` must be a list of names and optimizers, "
                "such as `[keras.optimizers.Adam(1e-3), 'lbfgs']`. "
                f"Received: optimizers={optimizers!r}"
            )
        self.optimizers = Members(map(resolved, optimizers))
        _check_stages(self.optimizers)
        self.rows_of_a_batch = batch_size
        self.full_batch = full_batch
        self.patience = patience
        self.min_delta = min_delta
        self.share = share
        self.precision = precision
        self.loss_weights = loss_weights
        self.seed = seed
        self.stages()

    def stages(self, epochs: Any = None, **overrides: Any) -> list[Stage]:
        given = sorted(k for k, v in overrides.items() if v is not None)
        if given:
            raise ValueError(
                "Pass options of the stages of a `Chain` to their "
                "constructors, as in `kormos.optimizers.LBFGS(memory=50)`. "
                f"Received: {given}"
            )
        epochs = self.epochs if epochs is None else epochs
        settings, total = self._settings(epochs), None
        if isinstance(epochs, (int, np.integer)):
            check_epochs(epochs)
            total = int(epochs)
        stages = [
            stage
            for optimizer, values in zip(self.optimizers, settings, strict=True)
            for stage in self._stages_of(optimizer, values)
        ]
        return _sharing(stages, total)

    def _settings(self, epochs: Any) -> list[dict[str, Any]]:
        """The arguments of each stage."""
        count = len(self.optimizers)
        if isinstance(epochs, (int, np.integer)):
            # The number of epochs of all stages. A list of the constructor is
            # kept.
            epochs = self.epochs if isinstance(self.epochs, list) else None
        settings = {
            "epochs": epochs,
            "batch_size": self.rows_of_a_batch,
            "full_batch": self.full_batch,
            "patience": self.patience,
            "min_delta": self.min_delta,
            "share": self.share,
            "pretrain_fn": self.pretrain_fn,
            "precision": self.precision,
            "loss_weights": self.loss_weights,
        }
        for name, value in settings.items():
            if isinstance(value, (list, tuple)) and len(value) != count:
                raise ValueError(
                    f"Argument `{name}` of a `Chain` must have an entry for "
                    f"each of the {count} stages, or must not be a list. "
                    f"Received: {name}={value!r}"
                )
        return [
            {
                name: value[i] if isinstance(value, (list, tuple)) else value
                for name, value in settings.items()
            }
            for i in range(count)
        ]

    def _stages_of(
        self, optimizer: Any, settings: dict[str, Any]
    ) -> list[Stage]:
        _check(settings)
        epochs = settings["epochs"]
        if isinstance(optimizer, BatchOptimizer):
            is_told = epochs is not None or optimizer.epochs is not None
            stages = optimizer.stages(epochs)
        else:
            is_told = epochs is not None
            is_full = bool(settings["full_batch"])
            run = KerasSteps(
                optimizer, is_full, settings["batch_size"], self.seed
            )
            stages = [
                Stage(
                    DEFAULT_EPOCHS if epochs is None else epochs,
                    None,
                    run.check,
                    run,
                    uses_batches=not is_full,
                    assigns=True,
                )
            ]
        return [
            stage._replace(
                name=stage.name or optimizer.name,
                takes_rest=not is_told,
                pretrain_fn=settings["pretrain_fn"] or stage.pretrain_fn,
                loss=LossSettings(
                    settings["precision"], settings["loss_weights"]
                ),
                **{k: settings[k] for k in ("patience", "min_delta", "share")},
            )
            for stage in stages
        ]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        settings = {
            "optimizers": [_saved(o) for o in self.optimizers],
            "batch_size": self.rows_of_a_batch,
            "full_batch": self.full_batch,
            "patience": self.patience,
            "min_delta": self.min_delta,
            "share": self.share,
            "precision": self.precision,
            "loss_weights": self.loss_weights,
            "seed": self.seed,
        }
        return {**config, **keras.saving.serialize_keras_object(settings)}


class Members(Sequence[Any]):
    """The optimizers of a chain.

    It is not a list, because Keras would then save the state of every stage.
    """

    def __init__(self, optimizers: Iterable[Any]):
        self._optimizers = tuple(optimizers)

    def __len__(self) -> int:
        return len(self._optimizers)

    def __getitem__(self, index: Any) -> Any:
        return self._optimizers[index]

    def __repr__(self) -> str:
        return repr(list(self._optimizers))


def resolved(identifier: Any) -> Any:
    """Returns an optimizer of kormos or Keras, from a name or an instance."""
    # The list of names includes the optimizers of this module.
    from kormos import optimizers

    if isinstance(identifier, Chain):
        raise ValueError(
            "A `Chain` cannot be a stage of a `Chain`: pass its optimizers "
            f"instead. Received: {identifier!r}"
        )
    if isinstance(identifier, str) and not optimizers.is_name(identifier):
        try:
            return keras.optimizers.get(identifier)
        except ValueError:
            pass  # The error below lists the names.
    if isinstance(identifier, keras.optimizers.Optimizer):
        return identifier
    return optimizers.get(identifier)


def _saved(optimizer: Any) -> Any:
    return keras.saving.serialize_keras_object(optimizer)


def _check(settings: dict[str, Any]) -> None:
    if settings["epochs"] is not None:
        check_epochs(settings["epochs"])
    for name in ("batch_size", "patience"):
        if settings[name] is not None:
            check_count(name, settings[name], 1)
    for name in ("min_delta", "share"):
        value = settings[name]
        is_part = isinstance(value, numbers.Real) and 0 <= float(value) <= 1
        if not (is_part or (value is None and name == "share")):
            raise ValueError(
                f"Argument `{name}` of a `Chain` must be a part, from 0 to "
                f"1. Received: {name}={value!r}"
            )
    if settings["precision"] not in (*PRECISIONS, "float32"):
        raise ValueError(
            "Argument `precision` of a `Chain` must be 'float32', 'float64', "
            "'auto' or None, or a list of these with one entry per stage. "
            f"Received: precision={settings['precision']!r}"
        )


def _sharing(stages: list[Stage], total: int | None) -> list[Stage]:
    """The stages, some of which share a number of epochs equally."""
    if total is None:
        return [stage._replace(takes_rest=False) for stage in stages]
    told = sum(s.epochs or 0 for s in stages if not s.takes_rest)
    rest, open_ones = max(0, total - told), sum(s.takes_rest for s in stages)
    found = []
    left = total
    for stage in stages:
        epochs = stage.epochs or 0
        if stage.takes_rest:
            # The last one takes the remainder of the division.
            epochs = rest // open_ones
            rest, open_ones = rest - epochs, open_ones - 1
        epochs = min(epochs, left)
        left -= epochs
        found.append(stage._replace(epochs=epochs))
    return found


def _check_stages(optimizers: Sequence[Any]) -> None:
    """Refuses bounds and constraints of a stage, which other stages ignore."""
    for optimizer in optimizers:
        for name in ("bounds", "constraints"):
            value = getattr(optimizer, name, None)
            if isinstance(optimizer, BatchOptimizer) and value:
                raise ValueError(
                    f"Argument `{name}` of a stage must be given to the "
                    "`Chain`, which has the same for all of its stages. "
                    f"Received: {name}={value!r} of stage '{optimizer.name}'"
                )
