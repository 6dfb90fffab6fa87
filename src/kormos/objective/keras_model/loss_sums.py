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

from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.copies import copied
from kormos.objective.units import SQUARES

# `LossFunctionWrapper` is public as the base of Keras' own losses alone.
_FunctionLoss = keras.losses.MeanSquaredError.__base__


class CompiledLosses:
    """The sums and divisors of a model's compiled losses.

    Args:
        loss: the `loss` argument of `compile`, of any structure.
        loss_weights: the `loss_weights` argument of `compile`.
        output_names: the model's output names, or `None`.
    """

    def __init__(self, loss, loss_weights, output_names):
        # One leaf may serve several outputs: every call is a term.
        self._calls = []
        self._probed = None
        wrapped = [
            None if leaf is None else _Term(leaf, self._note)
            for leaf in tree.flatten(loss)
        ]
        # Whether what it computes of outputs is as wide as they are.
        self.is_wide = all(
            leaf is None or squares_units(leaf) for leaf in tree.flatten(loss)
        )
        self._shell = keras.Model()
        if output_names is not None:
            self._shell.output_names = output_names
        self._shell.compile(
            optimizer=None,
            loss=tree.pack_sequence_as(loss, wrapped),
            loss_weights=loss_weights,
        )

    def _note(self, *call):
        self._calls.append(call)
        return 1.0 if len(self._calls) - 1 == self._probed else 0.0

    def _total(self, y, y_pred, sample_weight):
        self._calls.clear()
        is_array = y is not None and not tree.is_nested(y)
        if is_array and tree.is_nested(y_pred):
            # If there are as many rows as outputs, Keras would take each row
            # for the targets of one output.
            y = [y]
        return self._shell.compute_loss(
            y=y, y_pred=y_pred, sample_weight=sample_weight
        )

    def _terms(self, *data):
        self._total(*data)
        return list(self._calls)

    def counts(self, y, y_pred, sample_weight):
        """Divisors of the terms on these rows, as fractions.

        They add up over chunks; `nan` stands for a term without a divisor.

        Returns:
            A list of pairs of scalar tensors, numerator and denominator.
        """
        terms = self._terms(y, y_pred, sample_weight)
        return [
            tuple(ops.cast(value, "float64") for value in term.count(*data))
            for term, *data in terms
        ]

    def term_weights(self, y, y_pred, sample_weight):
        """By what Keras multiplies each term in the total: floats.

        The total of one term being one and all others zero, so that Keras
        matches `loss_weights` with the outputs.
        """
        data = y, y_pred, sample_weight
        factors = []
        for i in range(len(self._terms(*data))):
            self._probed = i
            factors.append(float(self._total(*data)))
        self._probed = None
        return factors

    def names(self, y, y_pred, sample_weight):
        """What to call the terms."""
        terms = self._terms(y, y_pred, sample_weight)
        return [term.description for term, *_ in terms]

    def by_output(self, y, y_pred, sample_weight):
        """For each output the `keras.losses.Loss`es of it."""
        terms = self._terms(y, y_pred, sample_weight)
        return [
            [
                _resolve(term._loss, y_true, values)
                for term, y_true, values, _ in terms
                if values is output
            ]
            for output in tree.flatten(y_pred)
        ]

    def total(self, y, y_pred, sample_weight, term_factors):
        """The sum of all terms on these rows, each times its scale."""
        total = ops.zeros((), dtype=term_factors.dtype)
        terms = self._terms(y, y_pred, sample_weight)
        for i, (term, *data) in enumerate(terms):
            total = total + term_factors[i] * term.sum(
                *data, dtype=term_factors.dtype
            )
        return total


class _Term(keras.losses.Loss):
    """Notes what Keras passes to a loss instead of computing it."""

    def __init__(self, loss, note):
        super().__init__(name=getattr(loss, "name", None))
        self._loss = loss
        self._note = note
        self.description = (
            loss
            if isinstance(loss, str)
            else getattr(loss, "__name__", self.name)
        )

    def __call__(self, y_true, y_pred, sample_weight=None):
        return ops.convert_to_tensor(
            self._note(self, y_true, y_pred, sample_weight), dtype=self.dtype
        )

    def sum(self, y_true, y_pred, sample_weight, dtype):
        loss = _resolve(self._loss, y_true, y_pred)
        if squares_units(loss):
            loss = _widened(loss, keras.backend.standardize_dtype(dtype))
        data = (y_true, y_pred, sample_weight)
        if not _is_opaque(loss):
            results = []

            def call(*args):
                results.append(loss.call(*args))
                return results[0]

            values = _variant(loss, call)(*data)
            if results[0].shape != () or loss.reduction == "sum":
                # The sum is as wide as the solver: in float32 the loss of
                # many rows would be noise long before the model is.
                return ops.sum(ops.cast(values, dtype))
            loss = _variant(loss, lambda *args: results[0], loss.reduction)
        # A loss that reduces by itself: Keras weighs its mean by rows.
        value = ops.cast(ops.mean(loss(*data)), dtype)
        return value * _count_rows(y_true, y_pred)

    def count(self, y_true, y_pred, sample_weight):
        loss = _resolve(self._loss, y_true, y_pred)
        if _is_opaque(loss):
            return _count_rows(y_true, y_pred), 1
        if loss.reduction == "sum":
            return np.nan, 1
        shapes = []

        def ones(*args):
            values = loss.call(*args)
            shapes.append(values.shape)
            return _OnesLike(dtype=values.dtype, autocast=False)(values)

        # Keras' own reduction of ones is a sum over its divisor. Weights are
        # part of the divisor in one reduction alone; elsewhere their shape is.
        weighted = loss.reduction == "mean_with_sample_weight"
        if sample_weight is not None and not weighted:
            sample_weight = ops.ones_like(sample_weight)
        data = (y_true, y_pred, sample_weight)
        values = _variant(loss, ones)(*data)
        if shapes[0] == ():
            return _count_rows(y_true, y_pred), 1
        if loss.reduction in (None, "none"):
            return np.prod(tuple(values.shape)), 1
        mean = _variant(loss, ones, loss.reduction)(*data)
        return ops.sum(ops.cast(values, "float64")), ops.sum(mean)


class _OnesLike(keras.layers.Layer):
    """Ones with the mask of the input, which layers alone may read."""

    supports_masking = True

    def call(self, inputs):
        return ops.ones_like(inputs)


def _count_rows(y_true, y_pred):
    # A model may reduce its outputs to a scalar itself.
    return leading_size(y_pred if len(y_pred.shape) else y_true)


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
    return type(loss).__call__ is not keras.losses.Loss.__call__


def squares_units(loss):
    """Whether a loss squares what has units, and knows how to in any dtype."""
    resolved = None if isinstance(loss, str) else loss
    if resolved is None and loss.lower() not in ("crossentropy", "ce"):
        resolved = keras.losses.get(loss)
    fn = getattr(resolved, "fn", resolved)
    # Of a subclass, `call` may be another one.
    is_own = isinstance(resolved, keras.losses.Loss) and (
        type(resolved).call is not _FunctionLoss.call or _is_opaque(resolved)
    )
    return not is_own and any(fn is known for known in SQUARES)


def _widened(loss, dtype):
    """The same loss, computed in a wider dtype than its inputs have."""
    return copied(loss, fn=SQUARES[loss.fn], _dtype=dtype)


def _variant(loss, call, reduction=None):
    """A copy of a loss with another `call` and reduction."""
    return copied(loss, call=call, reduction=reduction)
