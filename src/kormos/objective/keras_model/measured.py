"""A model's loss whose metrics come from the evaluations of the loss."""

import functools
from collections.abc import Callable
from collections.abc import Hashable
from typing import Any
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kormos import backend
from kormos.backend.common import as_tensor
from kormos.failures import FINAL
from kormos.failures import NUMERICAL
from kormos.failures import severity_of
from kormos.objective.arguments import ProgramArguments
from kormos.objective.arguments import is_host
from kormos.objective.base import FlatObjective
from kormos.objective.keras_model.metric_results import MetricValues
from kormos.objective.keras_model.program import ModelProgram
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector
from kormos.warn import warn

# The metrics of this many of the latest points are kept, and those of the
# lowest. Our choice: a method accepts one of the last few points that it has
# evaluated, or the lowest one if it has no gradients.
_KEPT = 8

# If the results have more numbers than this, they are not computed in a
# compiled loop. Our choice: a loop keeps the results of 50 iterations.
_MOST_READINGS = 2**14


class MeasuredObjective(FlatObjective):
    """A model's loss that knows the metrics of the points it has evaluated.

    It knows them after a call of `measure`. Without that, `evaluate` takes a
    pass over the data, and no other function computes metrics.

    Attributes:
        has_metrics: whether the model is compiled with metrics.
    """

    program: ModelProgram
    has_metrics: bool
    _known: "_Known | None" = None

    def measure(self) -> None:
        """Computes the metrics along with the loss from now on.

        This has no effect if rows are spread over devices, because these add up
        sums but no metrics.
        """
        if self.has_metrics and backend.row_devices() == 1:
            self._known = _Known()

    @property
    def readings(self) -> int:
        """The number of values in the metrics' results, in a compiled loop."""
        if self._known is None or self.is_hosted:
            return 0
        if not self.program.compiles_metrics:
            return 0
        count = sum(
            result.size for result in self.program.evaluate.results.layout
        )
        return count if count <= _MOST_READINGS else 0

    def metrics_of(self, readings: Vector) -> dict[str, Any]:
        """The metrics by name, from the readings of an iterate."""
        return self.program.evaluate.results.named(readings)

    @functools.cached_property
    def metric_names(self) -> list[str]:
        """The names of the results of `evaluate`, besides the loss."""
        return [result.name for result in self.program.evaluate.results.layout]

    def evaluate(self, theta: npt.ArrayLike) -> dict[str, Any]:
        """The loss and the compiled metrics at `theta`, as floats.

        Args:
            theta: array of shape `(size,)`.

        Returns:
            A dict with the names that `model.evaluate` uses.
        """
        theta, program = self._checked(theta, "theta"), self.program
        if self._known is not None:
            known = self._known.find(theta, self.arguments)
            if known is not None:
                results = program.evaluate.results(
                    theta, self.arguments.frozen, known.values
                )
                return {"loss": known.loss, **results}
        return program.evaluate(theta, self.arguments)

    def value(self, theta: Tensor) -> Scalar:
        if self._known is None or not is_host(theta):
            return super().value(theta)
        theta = self._checked(theta, "theta")
        evaluate, arguments = self.program.evaluate, self.arguments
        try:
            loss, values = evaluate.value(theta, arguments)
        except Exception as error:
            if severity_of(error) == FINAL:
                raise
        else:
            self._known.add(theta, arguments, loss, values)
            return loss
        # Perhaps only a metric has failed. The loss is still needed.
        return super().value(theta)

    def value_and_grad(self, theta: Tensor) -> tuple[Scalar, Tensor]:
        if self._known is None or not is_host(theta):
            return super().value_and_grad(theta)
        theta = self._checked(theta, "theta")
        evaluate, arguments = self.program.evaluate, self.arguments
        try:
            loss, grad, values = evaluate.value_and_grad(
                theta, arguments, self._loss_unit
            )
        except Exception as error:
            if severity_of(error) == FINAL:
                raise
        else:
            self._known.add(theta, arguments, loss, values)
            return loss, grad
        return super().value_and_grad(theta)

    def compiled_loop(
        self, key: Hashable, fn: Callable[..., Structure]
    ) -> Callable[..., Structure]:
        if self.readings:
            key = key, "with metrics"
        return super().compiled_loop(key, fn)

    def _traced(self) -> Callable[..., tuple[Tensor, ...]]:
        readings, without = self.readings, super()._traced()
        if not readings:
            return without
        with_metrics = self.program.evaluate.trace

        def traced(theta: Tensor, *arguments: Structure) -> tuple[Tensor, ...]:
            try:
                return with_metrics(theta, *arguments)
            except Exception as error:
                is_traced = backend.values(theta) is None
                if is_traced or severity_of(error) == FINAL:
                    raise
                failure = error
            # An error of the loss itself is raised here.
            found = without(theta, *arguments)
            warn_of_metric(failure)
            return *found, as_tensor(np.full(readings, np.nan))

        return traced


def warn_of_metric(error: Exception) -> None:
    """Warns of a metric that has failed at a point where the loss has not.

    Args:
        error: the exception. The numerics may fail without a warning.
    """
    if severity_of(error) != NUMERICAL:
        warn(
            "A compiled metric is NaN at points where it fails and the loss "
            "does not: correct the metric. Received: "
            f"{type(error).__name__}: {error}"
        )


class _Point(NamedTuple):
    """What is known at a point.

    Attributes:
        theta: the point, `(size,)`.
        loss: the loss there.
        values: the values of the metrics' variables.
    """

    theta: Vector
    loss: float
    values: MetricValues


class _Known:
    """Losses and values of the metrics' variables at the latest points."""

    def __init__(self) -> None:
        self._points: list[_Point] = []
        self._lowest: _Point | None = None
        self._arguments: ProgramArguments | None = None

    def add(
        self,
        theta: Vector,
        arguments: ProgramArguments,
        loss: float,
        values: MetricValues,
    ) -> None:
        """Keeps the values of a point.

        Args:
            theta: the point.
            arguments: the data, and the frozen variables.
            loss: the loss there.
            values: the values of the metrics' variables.
        """
        if arguments is not self._arguments:
            self._points, self._lowest = [], None
            self._arguments = arguments
        # A copy, because SciPy writes into the arrays that it gives.
        point = _Point(np.array(theta), loss, values)
        if loss < (np.inf if self._lowest is None else self._lowest.loss):
            self._lowest = point
        self._points = [*self._points[1 - _KEPT :], point]

    def find(self, theta: Vector, arguments: ProgramArguments) -> _Point | None:
        """The values of a point, or `None` if they are not kept."""
        if arguments is not self._arguments:
            return None
        for point in (*self._points, self._lowest):
            if point is not None and np.array_equal(point.theta, theta):
                return point
        return None
