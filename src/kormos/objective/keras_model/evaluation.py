"""The loss and the metrics that `evaluate` reports, compiled.

The metrics of a point come from the same pass over the data as its loss, and as
its gradient if that is needed. The sums of a metric are kept in the metric's
variables, whose values are passed from one chunk to the next.
"""

import collections
import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.arithmetic.vectors import to_array
from kormos.backend import ops
from kormos.objective.arguments import ProgramArguments
from kormos.objective.arguments import Shapes
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import fold_chunks
from kormos.objective.compiled import scalar_zero
from kormos.objective.keras_model.loss import ModelLoss
from kormos.objective.keras_model.metric_results import MetricResults
from kormos.objective.keras_model.metric_results import MetricValues
from kormos.objective.layout import Packing
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

# Sums over rows, and the values of the metrics' variables after them.
_Summed = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
# A function `(theta, frozen, term_factors, metric_values, chunk)`.
_OfChunk = Callable[..., _Summed]


class ModelEvaluation:
    """The loss of a model and the results of its metrics, over all data.

    Args:
        model_loss: the model's loss.
        packing: the `Packing` of the variables.
        compile: function that compiles a function.
        graphs: see `Program`.
        traces: see `Program`.

    Attributes:
        results: the results of the metrics.
    """

    def __init__(
        self,
        model_loss: ModelLoss,
        packing: Packing,
        compile: Compiler,
        graphs: backend.Graphs,
        traces: collections.Counter[str],
    ) -> None:
        self._model_loss = model_loss
        self._packing = packing
        self._traces = traces
        # The values after a reset, with which every evaluation starts.
        self._start = tuple(
            backend.to_numpy(v) for v in model_loss.metrics.variables
        )
        self._differentiated = backend.value_and_grad(
            functools.partial(
                model_loss.chunk_loss_and_metrics, is_differentiated=True
            ),
            has_others=True,
        )
        self._of_loss = graphs.recorded(self._loss_of)
        self._of_grad = graphs.recorded(self._grad_of)
        self._with_loss = compile(self._trace_loss)
        self._with_grad = compile(self._trace_grad)
        self.results = MetricResults(
            model_loss, packing, compile, graphs, self._start
        )

    def __call__(
        self, theta: Vector, arguments: ProgramArguments
    ) -> dict[str, Any]:
        """The loss and the metrics by name, as floats where they are numbers.

        Args:
            theta: the point.
            arguments: the other arguments of the program.
        """
        loss, values = self.value(theta, arguments)
        frozen = arguments.frozen
        return {"loss": loss, **self.results(theta, frozen, values)}

    def value(
        self, theta: Vector, arguments: ProgramArguments
    ) -> tuple[float, MetricValues]:
        """The loss, and the values of the metrics' variables after it."""
        with backend.float64():
            (loss,), values = self._summed(
                self._with_loss, theta, arguments, [()]
            )
            return number(loss), values

    def value_and_grad(
        self, theta: Vector, arguments: ProgramArguments, unit: float
    ) -> tuple[float, Vector, MetricValues]:
        """Like `value`, with the gradient between the two.

        Args:
            theta: the point.
            arguments: the other arguments of the program.
            unit: see `ProgramArguments.derivatives`.
        """
        with backend.float64():
            (loss, grad), values = self._summed(
                self._with_grad, theta, arguments, [(), theta.shape], unit
            )
            return number(loss) / unit, to_array(grad) / unit, values

    def trace(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> tuple[Scalar, Tensor, Tensor]:
        """Loss, gradient and readings, for use inside a compiled function."""
        (loss, grad), values = self._trace_grad(
            theta, self._start, frozen, term_factors, chunks
        )
        return loss, grad, self.results.flat(theta, frozen, values)

    def _summed(
        self,
        fn: Callable[..., Structure],
        theta: Vector,
        arguments: ProgramArguments,
        shapes: Shapes,
        unit: float = 1.0,
    ) -> tuple[Sequence[Tensor], MetricValues]:
        """Sums over all data, and the values of the metrics' variables.

        What rows of data add to these variables is added up, also over
        processes.

        Args:
            fn: the compiled function.
            theta: the point.
            arguments: the other arguments of the program.
            shapes: the shapes of the sums.
            unit: see `ProgramArguments.derivatives`.
        """
        processes, start = arguments.processes, self._start

        def own() -> tuple[Sequence[Tensor], MetricValues]:
            sums: Sequence[Tensor] | None = None
            values: MetricValues = start
            for piece in arguments.pieces(unit):
                found, values = fn(theta, values, *piece)
                sums = found if sums is None else [*map(_add, sums, found)]
            assert sums is not None  # There is at least one chunk.
            if not processes.is_alone:
                values = tuple(map(_minus, values, start))
            return sums, values

        shapes = [*shapes, *(np.shape(value) for value in start)]
        sums, values = processes.total(own, shapes, [theta], "metrics")
        if not processes.is_alone:
            values = [
                (before + added).astype(before.dtype)
                for before, added in zip(start, values, strict=True)
            ]
        return sums, values

    def _trace_loss(
        self,
        theta: Tensor,
        metric_values: MetricValues,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> _Summed:
        """The loss, and the values of the metrics' variables after it."""
        self._traces["evaluate"] += 1
        zeros = (scalar_zero(theta),)
        known = theta, frozen, term_factors
        return self._fold(self._of_loss, known, metric_values, chunks, zeros)

    def _trace_grad(
        self,
        theta: Tensor,
        metric_values: MetricValues,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> _Summed:
        """Like `_trace_loss`, with the gradient."""
        self._traces["evaluate_and_grad"] += 1
        zeros = scalar_zero(theta), ops.zeros_like(theta)
        known = theta, frozen, term_factors
        return self._fold(self._of_grad, known, metric_values, chunks, zeros)

    def _fold(
        self,
        of_chunk: _OfChunk,
        known: tuple[Structure, ...],
        metric_values: MetricValues,
        chunks: Chunks,
        zeros: tuple[Tensor, ...],
    ) -> _Summed:
        """Sums over the chunks, and the metrics' variables after them.

        Args:
            of_chunk: function of `known`, the metrics' variables before a
                chunk, and the chunk. It returns what the chunk adds, and the
                variables after it.
            known: its first arguments.
            metric_values: the values of the metrics' variables before the first
                chunk.
            chunks: the data.
            zeros: the sums before the first chunk.
        """

        def step(state: _Summed, chunk: Chunk) -> _Summed:
            sums, before = state
            added, after = of_chunk(*known, before, chunk)
            pairs = zip(sums, added, strict=True)
            return tuple(a + b for a, b in pairs), after

        state, start = (
            (zeros, tuple(map(ops.convert_to_tensor, values)))
            for values in (metric_values, self._start)
        )
        return fold_chunks(step, chunks[0], state, start)

    def _loss_of(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        metric_values: MetricValues,
        chunk: Chunk,
    ) -> _Summed:
        """What a chunk adds to the loss, and the metrics' variables then."""
        parts = self._packing.unpack(theta)
        loss, values = self._model_loss.chunk_loss_and_metrics(
            parts, frozen, term_factors, chunk, metric_values
        )
        return (ops.cast(loss, theta.dtype),), values

    def _grad_of(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        metric_values: MetricValues,
        chunk: Chunk,
    ) -> _Summed:
        """Like `_loss_of`, with what the chunk adds to the gradient."""
        (loss, values), gradients = self._differentiated(
            self._packing.unpack(theta),
            frozen,
            term_factors,
            chunk,
            metric_values,
        )
        grad = self._packing.pack(gradients, theta.dtype)
        return (ops.cast(loss, theta.dtype), grad), values


def _add(total: Tensor, value: Tensor) -> Array:
    # Conversion to NumPy waits for the values, so that few pieces are in memory
    # at once.
    return np.asarray(backend.view(total), "float64") + backend.view(value)


def _minus(value: Tensor, start: Array) -> Array:
    return backend.to_numpy(value) - start
