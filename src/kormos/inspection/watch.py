"""A model's layers and losses, one by one, on some rows."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.float64.layer_calls import recorded_calls
from kormos.objective.compiled import leading_size

# Rows at which layers are looked at one by one, where a model takes so few.
ROWS = 64


class Watched(NamedTuple):
    """One evaluation.

    Attributes:
        rows: how many rows there were.
        names: of the layers, in the order of their calls.
        outputs: list of each layer's outputs, NumPy arrays.
        terms: the names of the loss's terms.
        losses: what each term adds to the loss: NumPy vector.
    """

    rows: int
    names: list
    outputs: list
    terms: list
    losses: np.ndarray


class Watch:
    """Evaluates a model's loss on some rows and notes every layer.

    Layers within layers are left out, and those whose outputs have no values
    of their own: within a loop, or mapped over the rows.

    Args:
        objective: an `Objective`.
        theta: the point to evaluate at, `(size,)`.
    """

    def __init__(self, objective, theta):
        self._objective = objective
        # A model may take so many rows alone as a chunk has.
        chunk = objective.chunk_rows
        self._counts = [min(ROWS, chunk), chunk]
        self._program = objective.program
        self._loss = objective.program.model_loss
        self._theta = np.asarray(theta)
        # One row a term: all others count for nothing.
        self._scales = np.diag(objective.scales)
        self._terms = [
            *self._loss.loss_names,
            self._loss.own_name or "what layers add to the loss",
        ]

    @property
    def head(self):
        """The rows that `first` evaluates."""
        return self._objective.head(self._counts[0])

    def first(self):
        """Evaluates the first rows, no more of them than the model needs."""
        try:
            return self(self.head)
        except Exception:
            if len(set(self._counts)) == 1:
                raise
        self._counts = self._counts[1:]
        return self(self.head)

    def __call__(self, data):
        """Evaluates rows, eagerly: only so do all layers' outputs have values.

        Args:
            data: tensors `(x, y, weights)`.
        """
        with backend.wide():
            theta, scales = (
                ops.convert_to_tensor(a, dtype=a.dtype.name)
                for a in (self._theta, self._scales)
            )
            parts = self._program.packing.unpack(theta)
            scope = self._loss.scope(parts, self._program.frozen_values())
            with scope, recorded_calls(_tensors) as calls:
                y_pred = self._loss.predict(data.x)
                losses = self._losses(*data[:2], y_pred, data[2], scales)
            losses = ops.convert_to_numpy(ops.stack(losses))
        names, outputs = [], []
        for call in filter(_is_layer_of_model, calls):
            values = [backend.values(tensor) for tensor in call.outputs]
            if all(v is not None for v in values):
                names.append(call.owner.name)
                outputs.append(values)
        return Watched(
            leading_size(data.x), names, outputs, self._terms, losses
        )

    def _losses(self, x, y, y_pred, w, scales):
        count = len(self._terms)
        losses = [
            self._loss.output_loss(x, y, y_pred, w, scales[i])
            for i in range(count - 1)
        ]
        if self._loss.own_name is None:
            return [*losses, self._loss.layer_losses(x, scales[-1])]
        return [*losses, self._loss.output_loss(x, y, y_pred, w, scales[-1])]


def _tensors(outputs):
    # Where they are differentiated: the values that this is done at.
    leaves = tree.flatten(outputs)
    return [ops.stop_gradient(leaf) for leaf in leaves if ops.is_tensor(leaf)]


def _is_layer_of_model(call):
    return isinstance(call.owner, keras.Layer) and all(
        isinstance(caller, keras.Model) for caller in call.callers
    )
