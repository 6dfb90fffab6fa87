"""A model's layers and losses, one by one, on some rows."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.objective.calls import recorded_calls
from kormos.objective.program import leading_size

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

    Layers within layers are left out: a recurrent layer calls its cell where
    nobody can look.

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
        """Evaluates rows, traced anew: what Python draws is drawn again.

        Args:
            data: tensors `(x, y, weights)`.
        """
        names = []

        def watched(theta, frozen, scales, x, y, w):
            parts = self._program.packing.unpack(theta)
            with self._loss.scope(parts, frozen), recorded_calls() as calls:
                y_pred = self._loss.predict(x)
                losses = self._losses(x, y, y_pred, w, scales)
            layers = [call for call in calls if _is_layer_of_model(call)]
            names[:] = [call.owner.name for call in layers]
            outputs = [
                [t for t in tree.flatten(call.outputs) if ops.is_tensor(t)]
                for call in layers
            ]
            return outputs, ops.stack(losses)

        with backend.wide():
            outputs, losses = backend.compile(watched)(
                self._theta, self._program.frozen_values(), self._scales, *data
            )
        return Watched(
            leading_size(data.x),
            list(names),
            tree.map_structure(ops.convert_to_numpy, outputs),
            self._terms,
            ops.convert_to_numpy(losses),
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


def _is_layer_of_model(call):
    return isinstance(call.owner, keras.Layer) and all(
        isinstance(caller, keras.Model) for caller in call.callers
    )
