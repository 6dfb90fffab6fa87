"""The factors of a model's terms, counted over all of its data."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

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
            run = self._model_loss.stateless.dry_run
            list(self._each(run, self._loss, sizes.values()))
        factors[-1] = 1 / rows()
        return factors

    def _divisors(self, arguments: ProgramArguments) -> Vector:
        """The divisor of each term over all of the data."""
        shape = (len(self._model_loss.terms.weights),)

        def own() -> Vector:
            counts, chunks = np.zeros(shape), arguments.each_chunk()
            for count in self._each(self._checked, self._counts, chunks):
                sums, means = np.array(
                    [[backend.to_numpy(v) for v in c] for c in count]
                ).T
                divisors = np.where(means, means, 1)
                counts += np.where(means == 0, 0, sums / divisors)
            return counts

        counts = arguments.processes.total(own, [shape], name="divisors")
        # A sum has no divisor.
        return np.where(np.isnan(counts), 1.0, counts)

    def _checked(
        self,
        count: Callable[..., Structure],
        parts: list[Tensor],
        frozen: list[Tensor],
        chunk: Chunk,
    ) -> Structure:
        """Counts a chunk, once its targets are known to be right."""
        terms = self._model_loss.terms
        if terms.limited:
            extremes = backend.attempt(self._extremes, parts, frozen, chunk)
            terms.check_extremes(extremes)
        return backend.attempt(count, parts, frozen, chunk)

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

    def _each(
        self,
        call: Callable[..., Structure],
        fn: Callable[..., Structure],
        chunks: Iterable[Chunk],
    ) -> Iterator[Structure]:
        """Yields what a function returns for each chunk.

        Args:
            call: function that calls `fn` with its arguments.
            fn: function `(parts, frozen, chunk)`.
            chunks: the chunks.
        """
        stateless = self._model_loss.stateless
        frozen = values_of(stateless.frozen_variables)
        parts = values_of(stateless.variables)
        for chunk in chunks:
            names_rows = naming_rows(
                self._model, leading_size(chunk), self._model_loss.tried_rows
            )
            with names_rows, backend.float64():
                found = call(fn, parts, frozen, chunk)
            yield found

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
