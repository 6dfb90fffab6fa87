"""The loss and the metrics that `evaluate` reports, compiled."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.objective.arguments import ProgramArguments
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import fold_chunks
from kormos.objective.compiled import scalar_zero
from kormos.objective.keras_model.loss import ModelLoss
from kormos.objective.layout import Packing
from kormos.types import Scalar
from kormos.types import Tensor
from kormos.types import Vector


class ModelEvaluation:
    """The loss of a model and the results of its metrics, over all data.

    Args:
        model_loss: the model's loss.
        packing: the `Packing` of the variables.
        compile: function that compiles a function.
        traces: as `Program` has it.
    """

    def __init__(
        self,
        model_loss: ModelLoss,
        packing: Packing,
        compile: Compiler,
        traces: collections.Counter[str],
    ) -> None:
        self._stateless = model_loss.stateless
        self._terms = model_loss.terms
        self._metrics = model_loss.metrics
        self._packing = packing
        self._traces = traces
        self._folded = compile(self._fold)
        self._results = compile(self._results_at)
        # The values after a reset, with which every evaluation starts.
        self._start = tuple(
            backend.to_numpy(v) for v in self._metrics.variables
        )

    def __call__(
        self, theta: Vector, arguments: ProgramArguments
    ) -> dict[str, Any]:
        """The loss and the metrics by name, as floats where they are numbers.

        Args:
            theta: the point.
            arguments: the other arguments of the program.
        """
        with backend.float64():
            total, values = self._summed(theta, arguments)
            logs: dict[str, Any] = {"loss": total}
            results = self._results(theta, arguments.frozen, values)
            for name, value in results.items():
                value = backend.to_numpy(value)
                logs[name] = float(value) if value.ndim == 0 else value
        return logs

    def _summed(
        self, theta: Vector, arguments: ProgramArguments
    ) -> tuple[float, Sequence[Tensor]]:
        """The loss, and the values of the metrics' variables after it.

        What rows of data add to these variables adds up, over processes too.
        """
        processes, start = arguments.processes, self._start

        def own() -> tuple[Scalar, Sequence[Tensor]]:
            total, values = 0.0, start
            for piece in arguments.pieces():
                loss, values = self._folded(theta, values, *piece)
                total += number(loss)
            if not processes.is_alone:
                values = tuple(
                    backend.to_numpy(after) - before
                    for after, before in zip(values, start, strict=True)
                )
            return np.float64(total), values

        shapes = [(), *(np.shape(value) for value in start)]
        total, values = processes.total(own, shapes, [theta], "metrics")
        if not processes.is_alone:
            values = [
                (before + added).astype(before.dtype)
                for before, added in zip(start, values, strict=True)
            ]
        return float(total), values

    def names(self, theta: Vector, frozen: list[Tensor]) -> list[str]:
        """The names of the metrics' results.

        Args:
            theta: the values of the variables.
            frozen: those of the frozen variables.
        """
        with backend.float64():
            return list(self._results(theta, frozen, self._start))

    def _fold(
        self,
        theta: Tensor,
        metric_values: Sequence[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> tuple[Scalar, tuple[Tensor, ...]]:
        """The loss, and the values of the metrics' variables after it."""
        self._traces["evaluate"] += 1
        parts = self._packing.unpack(theta)

        def step(
            state: tuple[Scalar, tuple[Tensor, ...]], chunk: Chunk
        ) -> tuple[Scalar, tuple[Tensor, ...]]:
            loss, before = state
            x, y, w = chunk
            values = zip(self._metrics.variables, before, strict=True)
            with self._stateless.scope(parts, frozen, values) as scope:
                y_pred = self._stateless(x)
                own = self._terms.total(x, y, y_pred, w, term_factors)
                self._metrics.update(x, y, y_pred, w)
            after = map(scope.get_current_value, self._metrics.variables)
            return loss + ops.cast(own, loss.dtype), tuple(after)

        state, start = (
            (scalar_zero(theta), tuple(map(ops.convert_to_tensor, values)))
            for values in (metric_values, self._start)
        )
        return fold_chunks(step, chunks[0], state, start)

    def _results_at(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        metric_values: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The metrics' results, from the values of their variables."""
        parts = self._packing.unpack(theta)
        values = zip(self._metrics.variables, metric_values, strict=True)
        with self._stateless.scope(parts, frozen, values):
            return self._metrics.results()
