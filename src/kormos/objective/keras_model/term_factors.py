"""The factors of a model's terms, counted over all of its data."""

from collections.abc import Callable
from collections.abc import Hashable

import keras
import numpy as np
from keras import tree

from kormos import backend
from kormos.data.variables import values_of
from kormos.objective.arguments import ProgramArguments
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.loss import ModelLoss
from kormos.objective.keras_model.rows import naming_rows
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector


class TermFactors:
    """Counts the factors of a model's terms, which `LossTerms` describes.

    Args:
        model: the model.
        model_loss: its loss.
        compile: function that compiles a function.
    """

    def __init__(
        self, model: keras.Model, model_loss: ModelLoss, compile: Compiler
    ) -> None:
        self._model = model
        self._model_loss = model_loss
        self._compiled = model_loss.terms.compiled
        self._counts = compile(self._count)
        self._extremes = compile(self._extremes_of)
        # The divisors on chunks of some shapes, if they depend on nothing else.
        self._known: dict[Hashable, Vector] = {}

    def forget(self) -> None:
        """Forgets what a loss has returned that may have changed since."""
        self._known.clear()

    def __call__(
        self, arguments: ProgramArguments, rows: Callable[[], int]
    ) -> Vector:
        """The factors of the terms, from counts over all of the data.

        Args:
            arguments: arguments of the program with all of the data.
            rows: function that returns the number of rows. It is called after
                the last chunk.

        Returns:
            A float64 array: the weight of each term over its divisor, and then
            one over the number of rows.
        """
        weights = np.array(self._model_loss.terms.weights)
        factors = np.empty(len(weights) + 1)
        if self._compiled is not None:
            divisors = self._divisors(arguments)
            # A mean over no entries is zero.
            factors[:-1] = np.where(
                divisors == 0, 0, weights / np.where(divisors, divisors, 1)
            )
        else:
            # The model may not take the number of rows of the last chunk.
            chunks = arguments.each_chunk()
            sizes = {leading_size(chunk): chunk for chunk in chunks}
            sizes.pop(self._model_loss.tried_rows, None)
            for chunk in sizes.values():
                self._at(chunk, self._model_loss.stateless.dry_run, self._loss)
        factors[-1] = 1 / rows()
        return factors

    def _divisors(self, arguments: ProgramArguments) -> Vector:
        """The divisor of each term over all of the data."""
        shape = (len(self._model_loss.terms.weights),)

        def own() -> Vector:
            chunks = arguments.each_chunk()
            return sum(map(self._divisors_of, chunks), np.zeros(shape))

        counts = arguments.processes.total(own, [shape], name="divisors")
        # A sum has no divisor.
        return np.where(np.isnan(counts), 1.0, counts)

    def _divisors_of(self, chunk: Chunk) -> Vector:
        """The divisors on a chunk, once its targets are known to be right."""
        terms, compiled = self._model_loss.terms, self._compiled
        assert compiled is not None  # Other losses have no divisors.
        if terms.limited:
            extremes = self._at(chunk, backend.attempt, self._extremes)
            terms.check_extremes(extremes)
        leaves = tree.flatten(chunk)
        shapes = tuple(tuple(getattr(leaf, "shape", ())) for leaf in leaves)
        if shapes in self._known:
            return self._known[shapes]
        found = self._at(chunk, backend.attempt, self._counts)
        sums, means = np.array(
            [[backend.to_numpy(value) for value in pair] for pair in found]
        ).T
        divisors = np.where(means, sums / np.where(means, means, 1), 0)
        if not (self._model_loss.has_masks or compiled.counts_values):
            self._known[shapes] = divisors
        return divisors

    def _extremes_of(
        self, parts: list[Tensor], frozen: list[Tensor], chunk: Chunk
    ) -> list[tuple[Scalar, Scalar]]:
        """The lowest and the highest target of a chunk, for each term.

        These are the terms that do not take all values.
        """
        _, y, w = chunk
        structure = self._model_loss.outputs.structure
        # Keras asks for the number of rows.
        outputs = tree.map_structure(lambda _: np.zeros((1,)), structure)
        with self._model_loss.stateless.scope(parts, frozen):
            return self._model_loss.terms.extremes(y, w, outputs)

    def _at(
        self,
        chunk: Chunk,
        call: Callable[..., Structure],
        fn: Callable[..., Structure],
    ) -> Structure:
        """What a function returns for a chunk.

        Args:
            chunk: the chunk.
            call: function that calls `fn` with its arguments.
            fn: function `(parts, frozen, chunk)`.
        """
        stateless = self._model_loss.stateless
        frozen = values_of(stateless.frozen_variables)
        parts = values_of(stateless.variables)
        names_rows = naming_rows(
            self._model, leading_size(chunk), self._model_loss.tried_rows
        )
        with names_rows, backend.float64():
            return call(fn, parts, frozen, chunk)

    def _loss(
        self, parts: list[Tensor], frozen: list[Tensor], chunk: Chunk
    ) -> Scalar:
        """A chunk's loss with factors of one."""
        ones = self._model_loss.terms.ones()
        return self._model_loss.chunk_loss(parts, frozen, ones, chunk)

    def _count(
        self, parts: list[Tensor], frozen: list[Tensor], chunk: Chunk
    ) -> list[tuple[Scalar, Scalar]]:
        """A chunk's part of the divisors of the terms."""
        assert self._compiled is not None  # Other losses have no divisors.
        x, y, w = chunk
        with self._model_loss.stateless.scope(parts, frozen):
            y_pred = self._model_loss.stateless(x)
            return self._compiled.counts(y, y_pred, w)
