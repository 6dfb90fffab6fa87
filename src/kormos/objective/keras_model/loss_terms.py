"""The contributions of rows to a model's loss, from predictions and layers."""

import inspect

import keras
from keras import ops
from keras import tree

from kormos import backend
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.loss_sums import Call
from kormos.objective.keras_model.loss_sums import CompiledLosses
from kormos.objective.keras_model.loss_weights import loss_weights
from kormos.objective.keras_model.split_loss import SplitLoss
from kormos.objective.keras_model.split_loss import is_of_keras
from kormos.objective.keras_model.target_shapes import Shape
from kormos.objective.keras_model.target_shapes import are_broadcast
from kormos.objective.keras_model.target_shapes import naming_shapes
from kormos.objective.keras_model.target_values import Limits
from kormos.objective.keras_model.target_values import extremes
from kormos.objective.keras_model.target_values import limits_of
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor


class LossTerms:
    """The terms of a model's loss, for the values in the present scope.

    Terms with their own divisor (see `loss_sums.py`) are added as sums.
    Everything else that a model adds to its loss is weighted as in Keras'
    `evaluate`, with the rows of the chunk over all rows. These weights add up
    to one, so that weight regularizers count once.

    The term factors are the factor of each term's sum, and then one over the
    number of all rows.

    Args:
        model: a compiled and built model.
        training: whether layers behave as in training.

    Attributes:
        compiled: the losses that the model is compiled with, or `None` if it
            has none, or its own `compute_loss`.
        own_name: the name in messages of the model's own `compute_loss`, or
            `None`.
        weights: the weight of each term of `compiled`, by `loss_weights`.
        names: the names of these terms.
        own_names: the names of those that are not Keras' own.
        by_output: for each output, its losses.
        limited: triples of the place of a term, its name, and the values that
            its targets may have, for the terms that do not take all values.
        broadcast: triples of the name of a term and the shapes of targets and
            predictions that Keras broadcasts to each other.
    """

    weights: list[float]
    names: list[str]
    own_names: list[str]
    by_output: list[list[keras.losses.Loss]]
    limited: list[tuple[int, str, Limits]]
    broadcast: list[tuple[str, Shape, Shape]]

    def __init__(self, model: keras.Model, training: bool) -> None:
        self._model = model
        parameters = inspect.signature(model.compute_loss).parameters
        takes_training = "training" in parameters
        self._options = {"training": training} if takes_training else {}
        self.own_name: str | None = None
        if overrides(model, "compute_loss"):
            self.own_name = f"`compute_loss` of {type(model).__name__}"
        self.compiled: CompiledLosses | None = None
        if model.loss is not None and self.own_name is None:
            self.compiled = CompiledLosses(
                model.loss,
                loss_weights(model),
                getattr(model, "output_names", None),
            )

    def check_targets(self, y: Structure) -> None:
        """Refuses data without the targets that a compiled loss needs."""
        if self.compiled is None:
            return
        if all(leaf is None for leaf in tree.flatten(y)):
            raise ValueError(
                "The loss compares outputs with targets: pass `y`, or a "
                "dataset of pairs `(x, y)`. Received: y=None with "
                f"loss={_named(self._model.loss)}"
            )

    def match(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> None:
        """Matches the compiled losses with the outputs.

        It calls them outside of any stateless scope, because they may create
        variables when they are first called.
        """
        self.weights, self.names, self.by_output = [], [], []
        self.own_names, self.broadcast, self.limited = [], [], []
        self.check_targets(y)
        if self.compiled is not None:
            calls = self._matched(self.compiled, y, y_pred, sample_weight)
            losses = [self._learn(*call) for call in calls]
            self.by_output = [
                [
                    loss
                    for loss, (_, _, values, _) in zip(
                        losses, calls, strict=True
                    )
                    if values is output
                ]
                for output in tree.flatten(y_pred)
            ]

    def _matched(
        self,
        compiled: CompiledLosses,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure,
    ) -> list[Call]:
        """The terms with their data; notes their weights."""
        try:
            calls = compiled.calls(y, y_pred, sample_weight)
            self.weights = compiled.term_weights(y, y_pred, sample_weight)
        except Exception as error:
            raise _mismatch(y, y_pred, f". Keras says: {error}") from error
        arrays = [array for _, *pair, _ in calls for array in pair]
        if not all(hasattr(array, "shape") for array in arrays):
            raise _mismatch(y, y_pred)
        return calls

    def _learn(
        self,
        term: SplitLoss,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None,
    ) -> keras.losses.Loss:
        """Notes what a term compares; tries it and returns it as an object.

        A user's own loss is not tried here, because it may assign variables.
        """
        loss, name = term.resolved(y_true, y_pred), term.description
        shapes = tuple(y_true.shape), tuple(y_pred.shape)
        if are_broadcast(loss, *shapes):
            self.broadcast.append((name, *shapes))
        self.names.append(name)
        if not is_of_keras(loss):
            self.own_names.append(name)
            return loss
        limits = limits_of(loss, y_pred)
        if limits is not None:
            self.limited.append((len(self.names) - 1, name, limits))
            with backend.float64():
                limits.check(name, *extremes(limits, y_true, sample_weight))
        weights = None if sample_weight is None else tuple(sample_weight.shape)
        with naming_shapes(name, *shapes, weights):
            backend.dry_run(
                lambda: term.sum(y_true, y_pred, sample_weight, dtype="float32")
            )
        return loss

    def extremes(
        self, y: Structure, sample_weight: Structure, outputs: Structure
    ) -> list[tuple[Scalar, Scalar]]:
        """The lowest and the highest target of each of the `limited` terms.

        Args:
            y: the targets.
            sample_weight: the weights.
            outputs: the structure of the outputs.
        """
        assert self.compiled is not None  # Other losses have no limits.
        calls = self.compiled.calls(y, outputs, sample_weight)
        found = []
        for place, _, limits in self.limited:
            _, y_true, _, weights = calls[place]
            found.append(extremes(limits, y_true, weights))
        return found

    def check_extremes(self, found: list[tuple[Scalar, Scalar]]) -> None:
        """Refuses targets outside of their limits.

        Args:
            found: what `extremes` returns.

        Raises:
            ValueError: if one is outside.
        """
        for (_, name, limits), pair in zip(self.limited, found, strict=True):
            limits.check(name, *pair)

    def ones(self, dtype: str | None = None) -> Tensor:
        """Term factors of one.

        Args:
            dtype: their dtype. Defaults to Keras' own.
        """
        return ops.ones((len(self.weights) + 1,), dtype=dtype)

    def total(
        self,
        x: Structure,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure,
        term_factors: Tensor,
    ) -> Scalar:
        """What rows add to the loss, with their predictions and by layers."""
        total = self.of_outputs(x, y, y_pred, sample_weight, term_factors)
        if self.own_name is not None:
            # `compute_loss` may add the losses of layers itself.
            return total
        return total + self.of_layers(x, term_factors)

    def of_outputs(
        self,
        x: Structure,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure,
        term_factors: Tensor,
    ) -> Scalar:
        """What rows add to the loss by their predictions."""
        if self.own_name is not None:
            own = self.compute_loss(x, y, y_pred, sample_weight)
            return (
                leading_size(x)
                * term_factors[-1]
                * ops.cast(own, term_factors.dtype)
            )
        if self.compiled is None:
            return ops.zeros((), dtype=term_factors.dtype)
        return self.compiled.total(y, y_pred, sample_weight, term_factors)

    def of_layers(self, x: Structure, term_factors: Tensor) -> Scalar:
        """What layers add to the loss of rows that the model was called on."""
        total = ops.zeros((), dtype=term_factors.dtype)
        for loss in self._model.losses:
            total = total + ops.sum(ops.cast(loss, term_factors.dtype))
        return leading_size(x) * term_factors[-1] * total

    def compute_loss(
        self,
        x: Structure,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure,
    ) -> Scalar:
        """What the model's `compute_loss` returns, its own or that of Keras."""
        loss = self._model.compute_loss(
            x=x,
            y=y,
            y_pred=y_pred,
            sample_weight=sample_weight,
            **self._options,
        )
        return ops.mean(loss)

    @property
    def takes_float64(self) -> bool:
        """Whether the losses can be computed in a wider dtype than outputs."""
        return self.compiled is not None and self.compiled.is_float64

    @property
    def losses(self) -> list[keras.losses.Loss]:
        """The objects that compute the losses."""
        # One attribute of the model is the loss that Keras makes from the
        # compiled losses. Its call is not recorded.
        found = [*tree.flatten(self._model.loss), *vars(self._model).values()]
        return [loss for loss in found if isinstance(loss, keras.losses.Loss)]


def _named(loss: Structure) -> str:
    """The compiled loss of a model, as the user wrote it if that is short."""
    name = getattr(loss, "name", None)
    return name if isinstance(name, str) else repr(loss)


def _mismatch(y: Structure, y_pred: Structure, reason: str = "") -> ValueError:
    """The error for targets that the losses cannot compare with outputs."""
    return ValueError(
        "Targets and losses need the structure of the outputs: one array for "
        "one output, or a list or a dict of arrays, with the names of the "
        f"outputs as keys. Received: y of {structure_of(y)} for outputs of "
        f"{structure_of(y_pred)}{reason}"
    )


def structure_of(data: Structure) -> str:
    """The structure of data, with the shapes of its arrays, for messages."""
    return repr(
        tree.map_structure(
            # An output without a loss may have no targets.
            lambda a: None if a is None else tuple(a.shape),
            data,
        )
    )


def overrides(model: keras.Model, method: str) -> bool:
    """Whether the model's class replaces a method of `keras.Model`."""
    return getattr(type(model), method) is not getattr(keras.Model, method)
