"""Variables that layers update in training, such as moving averages.

In Keras' own training, each step moves the averages of batch normalization a
little towards those of its batch. Here they become the averages of all data.
With these averages, inference computes the loss that training minimized.
"""

import dataclasses

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
        # For each variable, the factor of the batch's average in a step.
        self._shares = {
            id(average): 1 - layer.momentum
            for layer in stateless.arithmetic.owners
            if isinstance(layer, keras.layers.BatchNormalization)
            and layer.trainable
            and layer.momentum < 1
            for average in (layer.moving_mean, layer.moving_variance)
        }

    def update(
        self, theta: Vector, arguments: ProgramArguments
    ) -> ProgramArguments:
        """Assigns the values that a pass over the data in training leads to.

        Args:
            theta: the values of the variables to train.
            arguments: the other arguments of the loss.

        Returns:
            The arguments with the values of the frozen variables after that.
        """
        if not self._variables:
            return arguments
        frozen = arguments.frozen
        averaged = [v for v in self._variables if id(v) in self._shares]
        values = values_of(self._variables)

        def own() -> list[Array]:
            nonlocal values
            sums = [np.zeros(v.shape) for v in averaged]
            rows = 0
            for chunk in arguments.each_chunk():
                values = self._after(theta, frozen, self._begun(values), chunk)
                count = leading_size(chunk)
                rows += count
                found = {
                    id(v): value
                    for v, value in zip(self._variables, values, strict=True)
                }
                for total, v in zip(sums, averaged, strict=True):
                    average = np.float64(backend.to_numpy(found[id(v)]))
                    total += average * count / self._shares[id(v)]
            return [*sums, np.array(float(rows))]

        processes = arguments.processes
        shapes = [*(tuple(v.shape) for v in averaged), ()]
        with backend.float64():
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
        ids = [id(v) for v in self._variables]
        known = dict(zip(ids, snapshot(self._variables), strict=True))
        before = zip(self._stateless.frozen_variables, frozen, strict=True)
        return dataclasses.replace(
            arguments, frozen=[known.get(id(v), value) for v, value in before]
        )

    def _begun(self, values: list[Tensor]) -> list[Tensor]:
        """The values before a chunk, with zeros for averages."""
        return [
            ops.zeros_like(value) if id(v) in self._shares else value
            for v, value in zip(self._variables, values, strict=True)
        ]

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
