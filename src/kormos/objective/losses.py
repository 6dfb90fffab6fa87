"""What a model's compiled losses add to the objective, chunk by chunk.

A Keras loss divides by a count (rows, valid entries, the sum of the weights)
that it takes from the batch at hand, so the losses of two batches cannot be
added. Here every loss is split into a sum, which can, and its divisor, which
is counted once over all the data.

Keras' own code matches losses, targets, outputs and weights: the losses are
wrapped and compiled into a model without layers whose `compute_loss` calls
them.
"""

import keras
import numpy as np
from keras import ops
from keras import tree

# `LossFunctionWrapper` is public as the base of Keras' own losses alone.
_FunctionLoss = keras.losses.MeanSquaredError.__base__


class CompiledLosses:
    """The sums and divisors of a model's compiled losses.

    Args:
        loss: the `loss` argument of `compile`, of any structure.
        loss_weights: the `loss_weights` argument of `compile`.
        output_names: the model's output names, or `None`.

    Raises:
        ValueError: if the numbers of losses and weights differ.
    """

    def __init__(self, loss, loss_weights, output_names):
        leaves = tree.flatten(loss)
        weights = tree.flatten(loss_weights)
        if loss_weights is None:
            weights = [None] * len(leaves)
        if len(weights) != len(leaves):
            raise ValueError(
                "Argument `loss_weights` must hold a weight for each loss. "
                f"Received: {len(leaves)} losses and {len(weights)} weights"
            )
        # One leaf may serve several outputs: every call is a term.
        self._calls = []
        wrapped = [
            None if leaf is None else _Term(leaf, weight, self._calls)
            for leaf, weight in zip(leaves, weights, strict=True)
        ]
        self._shell = keras.Model()
        if output_names is not None:
            self._shell.output_names = output_names
        self._shell.compile(
            optimizer=None, loss=tree.pack_sequence_as(loss, wrapped)
        )

    def _terms(self, y, y_pred, sample_weight):
        self._calls.clear()
        self._shell.compute_loss(
            y=y, y_pred=y_pred, sample_weight=sample_weight
        )
        return list(self._calls)

    def counts(self, y, y_pred, sample_weight):
        """Divisors of the terms on these rows: a list of floats.

        They add up over chunks; `nan` stands for a term without a divisor.
        """
        terms = self._terms(y, y_pred, sample_weight)
        return [term.count(*data) for term, *data in terms]

    def weights(self, y, y_pred, sample_weight):
        """The terms' factors, from `loss_weights`: a list of floats."""
        terms = self._terms(y, y_pred, sample_weight)
        return [term.weight for term, *_ in terms]

    def total(self, y, y_pred, sample_weight, scales):
        """The sum of all terms on these rows, each times its scale."""
        total = ops.zeros((), dtype=scales.dtype)
        terms = self._terms(y, y_pred, sample_weight)
        for i, (term, *data) in enumerate(terms):
            total = total + scales[i] * term.sum(*data, dtype=scales.dtype)
        return total


class _Term(keras.losses.Loss):
    """Notes what Keras passes to a loss instead of computing it."""

    def __init__(self, loss, weight, calls):
        super().__init__(name=getattr(loss, "name", None))
        self.weight = 1.0 if weight is None else float(weight)
        self._loss = loss
        self._calls = calls

    def __call__(self, y_true, y_pred, sample_weight=None):
        self._calls.append((self, y_true, y_pred, sample_weight))
        return ops.zeros(())

    def sum(self, y_true, y_pred, sample_weight, dtype):
        loss = _resolve(self._loss, y_true, y_pred)
        if _is_opaque(loss):
            rows = tree.flatten(y_pred)[0].shape[0]
            value = ops.mean(loss(y_true, y_pred, sample_weight))
            return ops.cast(value, dtype) * rows
        values = _variant(loss, loss.call)(y_true, y_pred, sample_weight)
        # The sum is as wide as the solver: in float32 the loss of many rows
        # would be noise long before the model is.
        return ops.sum(ops.cast(values, dtype))

    def count(self, y_true, y_pred, sample_weight):
        loss = _resolve(self._loss, y_true, y_pred)
        if _is_opaque(loss):
            return float(tree.flatten(y_pred)[0].shape[0])
        if loss.reduction == "sum":
            return np.nan
        sizes = []

        def ones(*args):
            values = loss.call(*args)
            sizes.append(float(np.prod(tuple(values.shape))))
            result = ops.ones_like(values)
            mask = getattr(values, "_keras_mask", None)
            if mask is not None:
                result._keras_mask = mask
            return result

        # Keras' own reduction of ones is a sum over its divisor. Weights are
        # part of the divisor in one reduction alone.
        if loss.reduction != "mean_with_sample_weight":
            sample_weight = None
        data = (y_true, y_pred, sample_weight)
        total = _host_sum(_variant(loss, ones)(*data))
        if loss.reduction in (None, "none"):
            return sizes[0]
        mean = _host_sum(_variant(loss, ones, loss.reduction)(*data))
        return total / mean if mean else 0.0


def _resolve(loss, y_true, y_pred):
    """A `Loss` object for whatever `compile` takes."""
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        loss = _crossentropy(y_true, y_pred)
    resolved = keras.losses.get(loss)
    if isinstance(resolved, keras.losses.Loss):
        return resolved
    return _FunctionLoss(resolved)


def _crossentropy(y_true, y_pred):
    if y_pred.shape[-1] == 1:
        return "binary_crossentropy"
    if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
        return "sparse_categorical_crossentropy"
    return "categorical_crossentropy"


def _is_opaque(loss):
    # A loss that reduces in its own way: Keras weighs its mean by rows.
    return type(loss).__call__ is not keras.losses.Loss.__call__


def _variant(loss, call, reduction=None):
    """A copy of a loss with another `call` and reduction."""
    # `copy.copy` would save and load it: Keras' objects are pickled so.
    variant = object.__new__(type(loss))
    variant.__dict__.update(loss.__dict__)
    variant.call = call
    variant.reduction = reduction
    return variant


def _host_sum(values):
    return float(np.sum(ops.convert_to_numpy(values), dtype="float64"))
