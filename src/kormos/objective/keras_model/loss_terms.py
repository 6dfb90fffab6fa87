"""The contributions of rows to a model's loss, from predictions and layers."""

import inspect

import keras
from keras import ops
from keras import tree

from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.loss_sums import CompiledLosses
from kormos.objective.keras_model.loss_weights import loss_weights
from kormos.objective.keras_model.target_shapes import Shape
from kormos.objective.keras_model.target_shapes import are_broadcast
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
        broadcast: triples of the name of a term and the shapes of targets and
            predictions that Keras broadcasts to each other.
    """

    weights: list[float]
    names: list[str]
    own_names: list[str]
    by_output: list[list[keras.losses.Loss]]
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

    def match(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> None:
        """Matches the compiled losses with the outputs.

        It calls them outside of any stateless scope, because they may create
        variables when they are first called.
        """
        self.weights, self.names, self.by_output = [], [], []
        self.own_names, self.broadcast = [], []
        if self.compiled is not None:
            if all(leaf is None for leaf in tree.flatten(y)):
                raise ValueError(
                    "The loss compares outputs with targets: pass `y`, or a "
                    "dataset of pairs `(x, y)`. Received: y=None with "
                    f"loss={_named(self._model.loss)}"
                )
            data = y, y_pred, sample_weight
            self.weights = self.compiled.term_weights(*data)
            self.names = self.compiled.names(*data)
            self.own_names = self.compiled.own_names(*data)
            self.by_output = self.compiled.by_output(*data)
            shapes = zip(self.names, self.compiled.shapes(*data), strict=True)
            self.broadcast = [
                (name, wanted, found)
                for name, (loss, wanted, found) in shapes
                if are_broadcast(loss, wanted, found)
            ]

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


def overrides(model: keras.Model, method: str) -> bool:
    """Whether the model's class replaces a method of `keras.Model`."""
    return getattr(type(model), method) is not getattr(keras.Model, method)
