"""A model's layers and terms of the loss, one by one, on a few rows."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.memory import Data
from kormos.float64.layer_calls import Call
from kormos.float64.layer_calls import recorded_calls
from kormos.objective import Objective
from kormos.objective.compiled import leading_size
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

# Rows of an evaluation, if the model takes this number. Our choice: the outputs
# of all layers are in memory at once, but with more rows it is more likely to
# find a fault that only a few rows show.
ROWS = 64


class Watched(NamedTuple):
    """The layers and losses of one evaluation.

    Attributes:
        rows: the number of rows.
        names: the names of the layers, in the order of their calls.
        outputs: for each layer, the list of its outputs.
        terms: the names of the terms of the loss.
        losses: what each term adds to the loss.
    """

    rows: int
    names: list[str]
    outputs: list[list[Array]]
    terms: list[str]
    losses: Vector


class Watch:
    """Evaluates a model's loss on a few rows and notes every layer.

    It leaves out layers within layers, and layers whose outputs have no values
    because they are traced: within a loop, or mapped over the rows.

    Args:
        objective: an `Objective`.
        theta: the point to evaluate at, `(size,)`.
    """

    def __init__(self, objective: Objective, theta: Vector) -> None:
        self._objective = objective
        # Some models take only batches of the size of a chunk.
        chunk = objective.chunk_rows
        self._counts = [min(ROWS, chunk), chunk]
        self._program = objective.program
        self._stateless = objective.program.model_loss.stateless
        self._loss_terms = objective.program.model_loss.terms
        self._theta = np.asarray(theta)
        # Each row has a scale of zero for all terms but one.
        self._scales = np.diag(objective.scales)
        self._terms = [
            *self._loss_terms.names,
            self._loss_terms.own_name or "what layers add to the loss",
        ]

    @property
    def head(self) -> Data:
        """The rows that `first` evaluates."""
        return self._objective.head(self._counts[0])

    def first(self) -> Watched:
        """Evaluates the first rows: a whole chunk if the model needs it."""
        try:
            return self(self.head)
        except Exception:
            if len(set(self._counts)) == 1:
                raise
        self._counts = self._counts[1:]
        return self(self.head)

    def __call__(self, data: Data) -> Watched:
        """Evaluates rows eagerly, so that the outputs of layers have values.

        Args:
            data: the rows, as tensors.
        """
        with backend.float64():
            theta, scales = (
                ops.convert_to_tensor(a, dtype=a.dtype.name)
                for a in (self._theta, self._scales)
            )
            parts = self._program.packing.unpack(theta)
            scope = self._stateless.scope(parts, self._program.frozen_values())
            with scope, recorded_calls(_tensors) as calls:
                y_pred = self._stateless(data.x)
                losses = self._losses(*data[:2], y_pred, data[2], scales)
            sums = backend.to_numpy(ops.stack(losses))
        names, outputs = [], []
        for call in filter(_is_layer_of_model, calls):
            values = [backend.values(tensor) for tensor in call.outputs]
            read = [array for array in values if array is not None]
            if len(read) == len(values):
                names.append(call.owner.name)
                outputs.append(read)
        return Watched(leading_size(data.x), names, outputs, self._terms, sums)

    def _losses(
        self,
        x: Structure,
        y: Structure,
        y_pred: Structure,
        w: Structure,
        scales: Tensor,
    ) -> list[Tensor]:
        """What each term adds to the loss."""
        count = len(self._terms)
        losses = [
            self._loss_terms.of_outputs(x, y, y_pred, w, scales[i])
            for i in range(count - 1)
        ]
        if self._loss_terms.own_name is None:
            return [*losses, self._loss_terms.of_layers(x, scales[-1])]
        return [
            *losses,
            self._loss_terms.of_outputs(x, y, y_pred, w, scales[-1]),
        ]


def _tensors(outputs: Structure) -> list[Tensor]:
    # A model may differentiate its outputs. Such a tensor can only be read
    # without its gradient.
    leaves = tree.flatten(outputs)
    return [ops.stop_gradient(leaf) for leaf in leaves if ops.is_tensor(leaf)]


def _is_layer_of_model(call: Call) -> bool:
    return isinstance(call.owner, keras.Layer) and all(
        isinstance(caller, keras.Model) for caller in call.callers
    )
