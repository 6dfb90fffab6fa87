"""The contributions of rows of data to a model's loss, without side effects."""

import dataclasses
from collections.abc import Sequence

import keras
from keras import tree

from kormos.data.memory import Data
from kormos.data.reading import dtype_for
from kormos.data.variables import float64_values
from kormos.data.variables import snapshot
from kormos.data.variables import to_float
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.agreement import Agreement
from kormos.objective.keras_model.carried_state import carried
from kormos.objective.keras_model.loss_terms import LossTerms
from kormos.objective.keras_model.metrics import ModelMetrics
from kormos.objective.keras_model.output_layout import layout_of
from kormos.objective.keras_model.stateless_model import StatelessModel
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor


class ModelLoss:
    """What a chunk of rows adds to a model's loss, without side effects.

    Args:
        model: a compiled and built model.
        head: the rows of a chunk, as tensors, with which the model is tried.
            With another number of rows it may fail, or compute another
            function.
        training: whether layers behave as in training.
        compile: function that compiles a function.
        dtype: `"float64"`, or `None` for the model's own dtype.

    Raises:
        ValueError: if there is no loss, or it depends on variables in a way
            that Keras does not see.
        Float64Error: if the model cannot be evaluated in float64.

    Attributes:
        stateless: the model, whose variables have other values in a scope.
        terms: the terms of the loss.
        metrics: the compiled metrics.
        outputs: the layout of the model's outputs.
        tried_rows: the number of rows with which the model was tried.
        carried: the paths of variables by which a batch changes the loss of
            the next one.
        has_masks: whether an output has a mask.
        adds_losses: whether layers add to the loss.
        adds_row_losses: whether they add more than regularizers of weights.
        is_compared: whether the losses of some rows and of parts of them were
            compared.
    """

    adds_losses: bool
    adds_row_losses: bool
    is_compared = False

    def __init__(
        self,
        model: keras.Model,
        head: Data,
        training: bool,
        compile: Compiler,
        dtype: str | None = None,
    ) -> None:
        self.stateless = StatelessModel(model, training)
        self.terms = LossTerms(model, training)
        self.metrics = ModelMetrics(model, self.terms)
        narrow = head.map(lambda a: to_float(a, dtype_for(model)))
        x, y, w = narrow
        self.tried_rows = leading_size(x)
        y_pred = self.stateless.learn_layers(x)
        self.outputs = layout_of(y_pred, self.tried_rows)
        self._build(x, y, y_pred, w)
        self._learn_variables(model, narrow)
        self.stateless.refuse_assigned(x)
        if dtype is not None:
            self._go_on_in_float64(head, narrow, compile)

    def _build(
        self, x: Structure, y: Structure, y_pred: Structure, w: Structure
    ) -> None:
        """Calls losses and metrics for the first time."""
        self.terms.match(y, y_pred, w)
        if self.terms.own_name is not None or self.metrics.has_losses:
            with self.stateless.arithmetic.learning():
                self.terms.compute_loss(x, y, y_pred, w)
        self.metrics.build(x, y, y_pred, w)

    def _learn_variables(self, model: keras.Model, head: Data) -> None:
        """Finds which variables an evaluation reads and assigns."""
        masks = _Masks(name="masks")

        def evaluate(
            x: Structure, y: Structure, w: Structure, term_factors: Tensor
        ) -> Scalar:
            y_pred = self.stateless(x)
            tree.map_structure(masks, y_pred)
            loss = self.terms.total(x, y, y_pred, w, term_factors)
            model.compute_metrics(x, y, y_pred, w)
            model.get_metrics_result()
            self.adds_losses = bool(model.losses)
            regularized = [
                v for v in model.trainable_variables if v.regularizer
            ]
            self.adds_row_losses = len(model.losses) > len(regularized)
            return loss

        arguments = *head, self.terms.ones()
        self.stateless.learn_variables(
            evaluate, *arguments, others=self.metrics.variables
        )
        self.has_masks = masks.found
        if not (
            self.terms.weights
            or self.terms.own_name is not None
            or self.adds_losses
        ):
            raise ValueError(
                "There is nothing to minimize: pass a `loss` to `compile`, "
                f"or call `add_loss` in a layer. Received: {model.name}, "
                "compiled with loss=None"
            )
        self.carried = carried(self.stateless, self.terms, head)
        self.stateless.refuse_hidden_reads(evaluate, *arguments)

    def _go_on_in_float64(
        self, head: Data, narrow: Data, compile: Compiler
    ) -> None:
        """Lets the model compute in float64, and checks that it does.

        Args:
            head: rows in float64.
            narrow: the same rows in the model's own dtype.
            compile: function that compiles a function.
        """
        stateless, terms = self.stateless, self.terms
        stateless.arithmetic.include(terms.losses)
        wide = stateless.arithmetic.in_float64()
        agreement = None
        if not stateless.draws:
            agreement = Agreement(stateless, terms, narrow, compile)
        stateless.arithmetic = wide

        def call(
            parts: list[Tensor],
            frozen: list[Tensor],
            x: Structure,
            y: Structure,
            w: Structure,
        ) -> Structure:
            with stateless.scope(parts, frozen):
                y_pred = stateless(x)
                if terms.own_name is not None:
                    return terms.compute_loss(x, y, y_pred, w)
                return y_pred

        def loss(
            parts: list[Tensor],
            frozen: list[Tensor],
            x: Structure,
            y: Structure,
            w: Structure,
        ) -> Scalar:
            return self.chunk_loss(
                parts, frozen, terms.ones("float64"), (x, y, w)
            )

        parts = float64_values(stateless.variables)
        frozen = snapshot(stateless.frozen_variables)
        wide.check(stateless.dry_run, call, loss, parts, frozen, *head)
        self.outputs = dataclasses.replace(self.outputs, dtype="float64")
        if agreement is not None:
            agreement.check(head)

    def chunk_loss(
        self,
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """What a chunk adds to the loss: a `ChunkLoss`."""
        x, y, w = chunk
        with self.stateless.scope(parts, frozen):
            y_pred = self.stateless(x)
            return self.terms.total(x, y, y_pred, w, term_factors)

    def chunk_loss_and_metrics(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
        metric_values: Sequence[Tensor],
        is_differentiated: bool = False,
    ) -> tuple[Scalar, tuple[Tensor, ...]]:
        """What a chunk adds to the loss, and the metrics after it.

        Args:
            parts: see `chunk_loss`.
            frozen: see `chunk_loss`.
            term_factors: see `chunk_loss`.
            chunk: see `chunk_loss`.
            metric_values: the values of the metrics' variables before it.
            is_differentiated: whether the loss is differentiated.

        Returns:
            The scalar, and the values of the metrics' variables.
        """
        x, y, w = chunk
        values = zip(self.metrics.variables, metric_values, strict=True)
        with self.stateless.scope(parts, frozen, values) as scope:
            y_pred = self.stateless(x)
            loss = self.terms.total(x, y, y_pred, w, term_factors)
            if is_differentiated:
                y_pred = self.metrics.constant(y_pred)
            self.metrics.update(x, y, y_pred, w)
        after = map(scope.get_current_value, self.metrics.variables)
        return loss, tuple(after)


class _Masks(keras.layers.Layer):
    """Notes whether there are masks. Keras shows masks only to layers."""

    supports_masking = True
    found = False

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        self.found = self.found or mask is not None
        return inputs
