"""An optimizer that chooses its method when a fit begins."""

from __future__ import annotations

import functools
from typing import Any
from typing import NamedTuple

import keras

from kormos.optimizers.chain import Chain
from kormos.optimizers.chain import Members
from kormos.optimizers.chain import resolved


class Choice(NamedTuple):
    """A choice of methods.

    Attributes:
        optimizers: names of the stages' optimizers.
        reason: a sentence that says why.
        patience: the `patience` of each stage, or `None`.
        share: the `share` of each stage, or `None`.
    """

    optimizers: list[str]
    reason: str
    patience: list[int | None] | None = None
    share: list[float | None] | None = None

    def __str__(self) -> str:
        names = " and then ".join(f"'{name}'" for name in self.optimizers)
        return f"{names} was chosen. {self.reason}"


@functools.cache
def _undecided() -> Any:
    """The stage before a choice, which never runs.

    All instances share it, because to make one takes a part of a small fit.
    """
    return resolved("lbfgs")


@keras.saving.register_keras_serializable(package="kormos")
class Auto(Chain):
    """Chooses the method from the size, the loss, the data and the limits.

    The choice is made at the start of a fit. It is based on measurements of one
    evaluation, and on estimates of one iteration of each method. `choice` and
    `result.choice` are a sentence that says what was chosen and why.

    Args:
        epochs: Integer, the number of epochs of a `fit` without `epochs`.
            Defaults to 20.
        bounds: Bounds of the variables. See `BatchOptimizer`.
        constraints: Constraints. See `BatchOptimizer`.
        keep_state: Where the solver's state is kept. See `BatchOptimizer`.
        name: String, the name of the optimizer.

    Attributes:
        choice: String, what was chosen for the latest fit, and why.

    Example:

    ```python
    model.compile(optimizer="auto", loss="mse")
    history = model.fit(x, y, epochs=200)
    print(history.result.choice)
    ```
    """

    chooses = True

    def __init__(
        self,
        epochs: int | None = None,
        bounds: Any = None,
        constraints: Any = None,
        keep_state: bool | None = None,
        name: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            [_undecided()],
            epochs=epochs,
            bounds=bounds,
            constraints=constraints,
            keep_state=keep_state,
            name=name,
            **others,
        )

    def take(self, choice: Choice) -> None:
        """Replaces the stages by those that were chosen."""
        self.optimizers = Members(map(resolved, choice.optimizers))
        self.patience, self.share = choice.patience, choice.share
        self.choice = str(choice)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        kept = "epochs", "bounds", "constraints", "keep_state", "name"
        return {name: config[name] for name in kept}
