"""The results of a model's metrics, from the values of their variables."""

import functools
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from kormos import backend
from kormos.backend import ops
from kormos.backend.common import as_tensor
from kormos.data.variables import snapshot
from kormos.objective.compiled import Compiler
from kormos.objective.keras_model.loss import ModelLoss
from kormos.objective.layout import Packing
from kormos.types import Array
from kormos.types import Tensor
from kormos.types import Vector

# Values of the metrics' variables.
MetricValues = Sequence[Tensor]


class _Result(NamedTuple):
    """The place of a metric's result in the readings.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: its NumPy dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


class MetricResults:
    """The results of a model's metrics.

    Args:
        model_loss: the model's loss.
        packing: the `Packing` of the variables.
        compile: function that compiles a function.
        graphs: see `Program`.
        start: the values of the metrics' variables before any rows.

    Attributes:
        flat: function `(theta, frozen, values)` of tensors: the results in one
            vector, in the order of `layout`.
    """

    def __init__(
        self,
        model_loss: ModelLoss,
        packing: Packing,
        compile: Compiler,
        graphs: backend.Graphs,
        start: tuple[Array, ...],
    ) -> None:
        self._stateless = model_loss.stateless
        self._metrics = model_loss.metrics
        self._packing = packing
        self._start = start
        self._compiled = compile(self._at)
        self.flat = graphs.recorded(self._flat)

    def __call__(
        self, theta: Vector, frozen: list[Tensor], values: MetricValues
    ) -> dict[str, Any]:
        """The metrics by name, as floats where they are numbers.

        Args:
            theta: the point.
            frozen: the values of the frozen variables.
            values: the values of the metrics' variables.
        """
        with backend.float64():
            found = self._compiled(theta, frozen, values)
            arrays = {k: backend.to_numpy(v) for k, v in found.items()}
        return _as_numbers(arrays)

    def named(self, readings: Vector) -> dict[str, Any]:
        """The metrics by name, from what `flat` returns."""
        ends = np.cumsum([result.size for result in self.layout])
        parts = np.split(readings, ends[:-1])
        return _as_numbers(
            {
                result.name: part.reshape(result.shape).astype(result.dtype)
                for result, part in zip(self.layout, parts, strict=True)
            }
        )

    @functools.cached_property
    def layout(self) -> list[_Result]:
        """The metrics' results, in the order of the readings."""
        names: list[str] = []

        def found(
            theta: Tensor, frozen: list[Tensor], values: MetricValues
        ) -> list[Tensor]:
            results = self._at(theta, frozen, values)
            names[:] = results
            return [ops.convert_to_tensor(r) for r in results.values()]

        with backend.float64():
            theta = as_tensor(self._packing.read())
            frozen = snapshot(self._stateless.frozen_variables)
            start = [as_tensor(value) for value in self._start]
            values = backend.dry_run(found, theta, frozen, start)
            arrays = map(backend.to_numpy, values)
            return [
                _Result(name, array.shape, array.dtype)
                for name, array in zip(names, arrays, strict=True)
            ]

    def _at(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        metric_values: MetricValues,
    ) -> dict[str, Tensor]:
        """The metrics' results, from the values of their variables."""
        parts = self._packing.unpack(theta)
        values = zip(self._metrics.variables, metric_values, strict=True)
        with self._stateless.scope(parts, frozen, values):
            return self._metrics.results()

    def _flat(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        metric_values: MetricValues,
    ) -> Tensor:
        """The same in one vector: the readings."""
        results = self._at(theta, frozen, metric_values)
        flat = [
            ops.reshape(ops.cast(result, theta.dtype), (-1,))
            for result in results.values()
        ]
        return ops.concatenate(flat)


def _as_numbers(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Arrays by name, as floats where they are numbers."""
    return {k: float(v) if v.ndim == 0 else v for k, v in arrays.items()}
