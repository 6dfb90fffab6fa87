"""Variables that layers update in training, such as moving averages.

In Keras' own training, each step moves the averages of batch normalization a
little towards those of its batch. Here they become the averages of all data.
With these averages, inference computes the loss that training minimized, if
each layer is called once.
"""

from collections.abc import Callable
from collections.abc import Container

import keras
import numpy as np
from keras import ops

from kormos import backend
from kormos.data.variables import assign
from kormos.data.variables import is_seed
from kormos.data.variables import snapshot
from kormos.data.variables import values_of
from kormos.objective.arguments import ProgramArguments
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.stateless_model import StatelessModel
from kormos.objective.layout import Packing
from kormos.types import Array
from kormos.types import Tensor
from kormos.types import Vector


class LayerStates:
    """The variables that layers assign when they are called in training.

    Args:
        model: the model.
        stateless: the same model, with layers that behave as in training.
        metric_variables: the variables of its metrics.
        packing: the `Packing` of the variables to train.
        compile: function that compiles a function.
    """

    def __init__(
        self,
        model: keras.Model,
        stateless: StatelessModel,
        metric_variables: list[keras.Variable],
        packing: Packing,
        compile: Compiler,
    ) -> None:
        self._stateless = stateless
        self._packing = packing
        self._after = compile(self._after_chunk)
        others = {id(v) for v in metric_variables}
        self._variables = [
            v
            for v in model.non_trainable_variables
            if not is_seed(v) and id(v) not in others
        ]
        self._momenta = {
            id(average): layer.momentum
            for layer in stateless.arithmetic.owners
            if isinstance(layer, keras.layers.BatchNormalization)
            and layer.trainable
            and layer.momentum < 1
            for average in (layer.moving_mean, layer.moving_variance)
        }
        # The parts of the averages that a pass leaves, once they are known.
        self._left: dict[int, float] | None = None

    def update(
        self, theta: Vector, arguments: ProgramArguments
    ) -> dict[int, Tensor]:
        """Assigns the values that a pass over the data in training leads to.

        The pass begins with the values that the loss reads, so that it leads to
        the same ones however often they are assigned.

        Args:
            theta: the values of the variables to train.
            arguments: the other arguments of the loss.

        Returns:
            The assigned values, by the `id` of the variable.
        """
        if not self._variables:
            return {}
        frozen, processes = arguments.frozen, arguments.processes
        read = zip(self._stateless.frozen_variables, frozen, strict=True)
        known = {id(v): value for v, value in read}
        present = values_of(self._variables)
        values = [
            known.get(id(v), value)
            for v, value in zip(self._variables, present, strict=True)
        ]
        with backend.float64():
            if self._left is None:
                chunk = next(iter(arguments.each_chunk()))
                self._left = self._parts_left(theta, frozen, values, chunk)
            left = self._left
            averaged = [v for v in self._variables if id(v) in left]

            def own() -> list[Array]:
                nonlocal values
                sums = [np.zeros(v.shape) for v in averaged]
                rows = 0
                for chunk in arguments.each_chunk():
                    begun = self._replaced(values, left, ops.zeros_like)
                    values = self._after(theta, frozen, begun, chunk)
                    found = self._by_identity(values)
                    count = leading_size(chunk)
                    rows += count
                    for total, v in zip(sums, averaged, strict=True):
                        average = np.float64(backend.to_numpy(found[id(v)]))
                        total += average * count / (1 - left[id(v)])
                return [*sums, np.array(float(rows))]

            shapes = [*(tuple(v.shape) for v in averaged), ()]
            *sums, rows = processes.total(own, shapes, [theta], "averages")
            after = {
                id(v): total / rows
                for v, total in zip(averaged, sums, strict=True)
            }
            if not processes.is_alone:
                arrays = [backend.to_numpy(value) for value in values]
                values = processes.from_first(lambda: arrays)
        for v, value in zip(self._variables, values, strict=True):
            assign(v, after.get(id(v), value))
        return self._by_identity(snapshot(self._variables))

    def _parts_left(
        self,
        theta: Vector,
        frozen: list[Tensor],
        values: list[Tensor],
        chunk: Chunk,
    ) -> dict[int, float]:
        """The part of each moving average that a pass over a chunk leaves.

        It is `momentum` to the power of the number of times that the layer is
        called as in training. Averages that a pass does not change are left
        out.

        Args:
            theta, frozen, values, chunk: see `_after_chunk`.
        """
        zeros = self._replaced(values, self._momenta, ops.zeros_like)
        found = self._by_identity(self._after(theta, frozen, zeros, chunk))
        # So large that rounding does not matter.
        starts = {
            id(v): 1 + 100 * ops.abs(found[id(v)])
            for v in self._variables
            if id(v) in self._momenta
        }
        begun = [
            starts.get(id(v), value)
            for v, value in zip(self._variables, zeros, strict=True)
        ]
        after = self._by_identity(self._after(theta, frozen, begun, chunk))
        left = {}
        for key, start in starts.items():
            moved = backend.to_numpy(after[key]) - backend.to_numpy(found[key])
            part = float(np.median(moved / backend.to_numpy(start)))
            momentum = self._momenta[key]
            if 0 < momentum and 0 < part:
                part = momentum ** round(np.log(part) / np.log(momentum))
            if part < 1:
                left[key] = max(part, 0.0)
        return left

    def _replaced(
        self,
        values: list[Tensor],
        keys: Container[int],
        make: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """The values, with others for the variables of these identities."""
        return [
            make(value) if id(v) in keys else value
            for v, value in zip(self._variables, values, strict=True)
        ]

    def _by_identity(self, values: list[Tensor]) -> dict[int, Tensor]:
        """The values of the variables, by the variables' identity."""
        return dict(zip(map(id, self._variables), values, strict=True))

    def _after_chunk(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        values: list[Tensor],
        chunk: Chunk,
    ) -> list[Tensor]:
        """The variables' values after the layers were called on a chunk.

        Args:
            theta: the values of the variables to train.
            frozen: the values of the frozen variables of the loss.
            values: the variables' values before.
            chunk: the chunk.
        """
        parts = self._packing.unpack(theta)
        own = {
            id(v): (v, value)
            for v, value in zip(self._variables, values, strict=True)
        }
        frozen = [
            own.pop(id(v), (v, value))[1]
            for v, value in zip(
                self._stateless.frozen_variables, frozen, strict=True
            )
        ]
        with self._stateless.scope(parts, frozen, own.values()) as scope:
            self._stateless(chunk[0])
        return [scope.get_current_value(v) for v in self._variables]
