"""A model's loss as a function of the model's outputs."""

from collections.abc import Callable
from collections.abc import Iterable
from typing import TypeAlias

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.backend.common import SecondDerivativeError
from kormos.data.variables import values_of
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.links import LinkedModel
from kormos.objective.keras_model.loss import ModelLoss
from kormos.objective.keras_model.output_hessian import points_to_probe
from kormos.objective.keras_model.output_hessian import probe
from kormos.objective.keras_model.own_loss import adds_layer_losses
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

# Function that returns chunks of rows.
_Chunks: TypeAlias = Callable[[], Iterable[Chunk]]


class ModelOutputs:
    """The loss as a function of the outputs of a model: an `OutputTerm`.

    Where the loss is the cross-entropy that matches a last softmax or sigmoid,
    or Poisson's for an exponential, the inputs of that activation count as the
    outputs. The loss is convex in these, and its Gauss-Newton matrix is the
    Fisher information.

    Args:
        model: the compiled and built model.
        model_loss: the model's loss.
        chunks: function that returns chunks of rows. They are probed until one
            shows curvature, because rows may have no weight, or be masked.
        compile: function that compiles a function.
    """

    is_residual = False

    def __init__(
        self,
        model: keras.Model,
        model_loss: ModelLoss,
        chunks: _Chunks,
        compile: Compiler,
    ) -> None:
        self._name = model.name
        self._stateless = model_loss.stateless
        self._terms = model_loss.terms
        self._layout = model_loss.outputs
        self._has_masks = model_loss.has_masks
        self._linked = LinkedModel(model, self._terms.by_output)
        # The trunk must compute in the dtype of the loss, too.
        self._stateless.arithmetic.include([self._linked.trunk])
        self.is_convex = self._linked.is_convex
        self.width = sum(self._layout.widths)
        self.has_penalty = model_loss.adds_losses
        if self._terms.own_name is not None:
            first = next(iter(chunks()))
            self.has_penalty = adds_layer_losses(model_loss, first)
        self.is_diagonal = self._check(chunks, compile)

    def rows(self, chunk: Chunk) -> Structure:
        """The inputs of a chunk."""
        return chunk[0]

    def outputs(
        self, parts: list[Tensor], frozen: list[Tensor], rows: Structure
    ) -> Tensor:
        """The outputs for rows of inputs, of shape `(rows, width)`."""
        with self._stateless.scope(parts, frozen):
            leaves = self._stateless(rows, self._linked)
        count = leading_size(rows)
        flat = [
            # Layers that take strings may have lost the number of rows.
            ops.reshape(leaf, (count, width))
            for leaf, width in zip(leaves, self._layout.widths, strict=True)
        ]
        return ops.concatenate(flat, axis=1) if flat[1:] else flat[0]

    def loss(
        self,
        values: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """What a chunk adds to the loss by its outputs."""
        x, y, w = chunk
        present = values_of(self._stateless.variables)
        with self._stateless.scope(present, frozen):
            y_pred = self._structured(values, x)
            loss = self._terms.of_outputs(x, y, y_pred, w, term_factors)
            if self.has_penalty and self._terms.own_name is not None:
                # `compute_loss` has added them, and they belong to `penalty`.
                loss = loss - self._terms.of_layers(x, term_factors)
            return loss

    def penalty(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """What layers add to the loss of a chunk."""
        with self._stateless.scope(parts, frozen):
            self._stateless(chunk[0])
            return self._terms.of_layers(chunk[0], term_factors)

    def _structured(self, values: Tensor, x: Structure) -> Structure:
        """The model's predictions, with their masks, from the outputs.

        Args:
            values: the outputs, of shape `(rows, width)`.
            x: the inputs.
        """
        if not self._terms.takes_float64:
            values = ops.cast(values, self._layout.dtype)
        shapes = self._layout.shapes
        ends = np.cumsum(self._layout.widths)[:-1].tolist()
        flat = ops.split(values, ends, axis=1) if ends else [values]
        leaves = [
            ops.reshape(part, (values.shape[0], *shape))
            for part, shape in zip(flat, shapes, strict=True)
        ]
        leaves = self._linked.activated(leaves)
        if self._has_masks:
            # Masks depend on the inputs, not on the weights.
            masked = tree.flatten(self._stateless(x))
            leaves = [
                _Replaced(leaf)(old)
                for leaf, old in zip(leaves, masked, strict=True)
            ]
        return tree.pack_sequence_as(self._layout.structure, leaves)

    def _check(self, chunks: _Chunks, compile: Compiler) -> bool:
        """Refuses losses without curvature in the outputs.

        Args:
            chunks: function that returns chunks of rows.
            compile: function that compiles a function.

        Returns:
            Whether the Hessian in the outputs of a row is diagonal.
        """
        frozen = values_of(self._stateless.frozen_variables)
        self._check_rows(frozen, next(iter(chunks())))

        def product(
            values: Tensor, vector: Tensor, term_factors: Tensor, chunk: Chunk
        ) -> Tensor:
            def fn(values: list[Tensor]) -> Scalar:
                return self.loss(values[0], frozen, term_factors, chunk)

            return backend.hvp(fn)([values], [vector])[0]

        product = compile(product)
        names = [*self._terms.names, self._terms.own_name]
        is_diagonal = True
        for i, name in enumerate(names):
            if name is None:
                continue
            term_factors = np.zeros(len(names))
            term_factors[i] = 1.0
            for chunk in chunks():
                points = points_to_probe(chunk, self.width, self._layout.dtype)
                try:
                    found = probe(product, points, term_factors, chunk)
                except SecondDerivativeError as error:
                    raise ValueError(f"{error}, in the loss {name}") from error
                if found.is_curved:
                    break
            if found.mixes_rows:
                raise ValueError(
                    "Gauss-Newton methods need a loss that is a sum over the "
                    "rows of data. Use 'lbfgs' or another method. "
                    f"Received: {name}, which mixes rows"
                )
            if not found.is_curved:
                raise ValueError(
                    "Gauss-Newton methods need a loss with second "
                    "derivatives with respect to the model's outputs. Use "
                    "'lbfgs', or a loss such as 'mse', 'huber' or "
                    f"'log_cosh'. Received: {name}, whose second derivatives "
                    "are zero"
                )
            is_diagonal = is_diagonal and found.is_diagonal
        return is_diagonal or self.width == 1

    def _check_rows(self, frozen: list[Tensor], chunk: Chunk) -> None:
        """Refuses outputs that cannot be differentiated row by row."""
        if self._layout.other_shapes:
            raise ValueError(
                "Gauss-Newton methods need outputs with a row for each row of "
                "data. Use 'lbfgs' or another method. "
                f"Received: {self._name}, with an output of shape "
                f"{self._layout.other_shapes[0]} for {leading_size(chunk)} "
                "rows"
            )
        if self._layout.has_complex:
            raise ValueError(
                "Gauss-Newton methods need real outputs: return real and "
                "imaginary parts, or use 'lbfgs' or another method. "
                f"Received: {self._name}, with complex outputs"
            )
        row = tree.map_structure(
            lambda a: None if a is None else a[:1], self.rows(chunk)
        )
        parts = values_of(self._stateless.variables)
        try:
            backend.dry_run(self.outputs, parts, frozen, row)
        except Exception as error:
            raise ValueError(
                "Gauss-Newton methods differentiate the outputs of one row at "
                "a time, so that a model must take a single row. Use 'lbfgs' "
                "or another method. "
                f"Received: {self._name}, which fails on one row"
            ) from error


class _Replaced(keras.layers.Layer):
    """Returns given values, with the mask of its input."""

    supports_masking = True

    def __init__(self, values: Tensor) -> None:
        super().__init__(name="replaced", dtype=values.dtype, autocast=False)
        self._values = values

    def call(self, inputs: Tensor) -> Tensor:
        return self._values
