"""What a model's compiled losses add to the objective, chunk by chunk.

A Keras loss divides by a count (rows, valid entries, the sum of the weights)
of the batch that it is given, so that the losses of two batches cannot be
added. Here every loss is split into a sum, which can be added, and its divisor,
which is counted once over all the data.

Keras' own code matches losses with targets, outputs and weights: the losses
are wrapped, and compiled into a model without layers whose `compute_loss`
calls them.
"""

from collections.abc import Callable
from typing import Any
from typing import TypeAlias

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.copies import copied
from kormos.objective.units import SQUARES
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

# Keras makes `LossFunctionWrapper` public only as the base of its own losses.
_FunctionLoss = keras.losses.MeanSquaredError.__base__

# A call of a term: `(term, y_true, y_pred, sample_weight)`.
_Call: TypeAlias = "tuple[_Term, Tensor, Tensor, Tensor | None]"


class CompiledLosses:
    """The sums and divisors of a model's compiled losses.

    Args:
        loss: the `loss` argument of `compile`, of any structure.
        loss_weights: the `loss_weights` argument of `compile`.
        output_names: the model's output names, or `None`.

    Attributes:
        is_wide: whether all losses can be computed in float64 for outputs in
            float32.
    """

    def __init__(
        self,
        loss: Structure,
        loss_weights: Structure,
        output_names: list[str] | None,
    ) -> None:
        # Each call of a loss is a term: one loss may serve several outputs.
        self._calls: list[_Call] = []
        # The place of the term that is one while all others are zero.
        self._probed: int | None = None
        wrapped = [
            None if leaf is None else _Term(leaf, self._note)
            for leaf in tree.flatten(loss)
        ]
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

    def _note(self, *call: Any) -> float:
        """Notes a call of a term; returns the value that Keras is to see."""
        self._calls.append(call)
        return 1.0 if len(self._calls) - 1 == self._probed else 0.0

    def _total(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> Scalar:
        """Lets Keras call the terms; returns the total that it computes."""
        self._calls.clear()
        is_array = y is not None and not tree.is_nested(y)
        if is_array and tree.is_nested(y_pred):
            # Keras would otherwise take each row for the targets of one output,
            # if there are as many rows as outputs.
            y = [y]
        return self._shell.compute_loss(
            y=y, y_pred=y_pred, sample_weight=sample_weight
        )

    def _terms(self, *data: Structure) -> list["_Call"]:
        """The terms, with the data that Keras passes to each."""
        self._total(*data)
        return list(self._calls)

    def counts(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> list[tuple[Scalar, Scalar]]:
        """The divisors of the terms on these rows, as fractions.

        The divisors of chunks add up to those of all rows.

        Returns:
            A list of pairs of scalar tensors, numerator and denominator. The
            numerator is NaN for a term without a divisor.
        """
        terms = self._terms(y, y_pred, sample_weight)
        return [
            tuple(ops.cast(value, "float64") for value in term.count(*data))
            for term, *data in terms
        ]

    def term_weights(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> list[float]:
        """The number by which Keras multiplies each term in the total.

        It is the total when this term is one and all others are zero. In this
        way, Keras matches `loss_weights` with the outputs.
        """
        data = y, y_pred, sample_weight
        factors = []
        for i in range(len(self._terms(*data))):
            self._probed = i
            factors.append(float(self._total(*data)))
        self._probed = None
        return factors

    def names(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> list[str]:
        """The names of the terms, for messages."""
        terms = self._terms(y, y_pred, sample_weight)
        return [term.description for term, *_ in terms]

    def by_output(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> list[list[keras.losses.Loss]]:
        """For each output, its losses."""
        terms = self._terms(y, y_pred, sample_weight)
        return [
            [
                _resolve(term._loss, y_true, values)
                for term, y_true, values, _ in terms
                if values is output
            ]
            for output in tree.flatten(y_pred)
        ]

    def total(
        self,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure,
        term_factors: Tensor,
    ) -> Scalar:
        """The sum of all terms on these rows, each times its factor."""
        total = ops.zeros((), dtype=term_factors.dtype)
        terms = self._terms(y, y_pred, sample_weight)
        for i, (term, *data) in enumerate(terms):
            total = total + term_factors[i] * term.sum(
                *data, dtype=term_factors.dtype
            )
        return total


class _Term(keras.losses.Loss):
    """A loss that notes what Keras passes to it, and computes it later.

    Args:
        loss: an entry of the `loss` argument of `compile`.
        note: function of the term and its data that returns the value of the
            call.
    """

    def __init__(self, loss: Any, note: Callable[..., float]) -> None:
        super().__init__(name=getattr(loss, "name", None))
        self._loss = loss
        self._note = note
        known: Any = getattr(loss, "__name__", self.name)
        self.description: str = loss if isinstance(loss, str) else known

    def __call__(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return ops.convert_to_tensor(
            self._note(self, y_true, y_pred, sample_weight), dtype=self.dtype
        )

    def sum(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None,
        *,
        dtype: Any,
    ) -> Scalar:
        """The loss, summed over the rows, in a dtype."""
        loss = _resolve(self._loss, y_true, y_pred)
        if squares_units(loss):
            loss = _widened(loss, keras.backend.standardize_dtype(dtype))
        data = (y_true, y_pred, sample_weight)
        if not _is_opaque(loss):
            results = []

            def call(*args: Tensor) -> Tensor:
                results.append(loss.call(*args))
                return results[0]

            values = _variant(loss, call)(*data)
            if results[0].shape != () or loss.reduction == "sum":
                # The sum has the dtype of the solver. A sum of many rows in
                # float32 would have much more rounding than the rows.
                return ops.sum(ops.cast(values, dtype))
            loss = _variant(loss, lambda *args: results[0], loss.reduction)
        # A loss with a reduction of its own: `evaluate` weighs its mean over a
        # batch by the batch's rows.
        value = ops.cast(ops.mean(loss(*data)), dtype)
        return value * _count_rows(y_true, y_pred)

    def count(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None
    ) -> tuple[Scalar, Scalar]:
        """The divisor of the loss, as a numerator and a denominator."""
        loss = _resolve(self._loss, y_true, y_pred)
        if _is_opaque(loss):
            return _count_rows(y_true, y_pred), 1
        if loss.reduction == "sum":
            return np.nan, 1
        shapes = []

        def ones(*args: Tensor) -> Tensor:
            values = loss.call(*args)
            shapes.append(values.shape)
            return _OnesLike(dtype=values.dtype, autocast=False)(values)

        # For a loss of ones, Keras' own mean is their sum over the divisor. In
        # only one reduction, the divisor contains the weights. In the others,
        # only the shape of the weights matters.
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
    """Ones with the mask of the input. Keras lets only layers read masks."""

    supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return ops.ones_like(inputs)


def _count_rows(y_true: Tensor, y_pred: Tensor) -> int:
    # A model may return a scalar.
    return leading_size(y_pred if len(y_pred.shape) else y_true)


def _resolve(loss: Any, y_true: Tensor, y_pred: Tensor) -> keras.losses.Loss:
    """The `Loss` object for an entry of the `loss` argument of `compile`."""
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        loss = _crossentropy(y_true, y_pred)
    resolved = keras.losses.get(loss)
    if isinstance(resolved, keras.losses.Loss):
        return resolved
    return _FunctionLoss(resolved)


def _crossentropy(y_true: Tensor, y_pred: Tensor) -> str:
    """The loss that Keras chooses for "crossentropy"."""
    if y_pred.shape[-1] == 1:
        return "binary_crossentropy"
    if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
        return "sparse_categorical_crossentropy"
    return "categorical_crossentropy"


def _is_opaque(loss: keras.losses.Loss) -> bool:
    """Whether a loss has a reduction of its own, which cannot be split."""
    return type(loss).__call__ is not keras.losses.Loss.__call__


def squares_units(loss: Any) -> bool:
    """Whether it is a loss of `units.SQUARES`, which any dtype can compute.

    Args:
        loss: an entry of the `loss` argument of `compile`.
    """
    resolved = None if isinstance(loss, str) else loss
    if resolved is None and loss.lower() not in ("crossentropy", "ce"):
        resolved = keras.losses.get(loss)
    fn = getattr(resolved, "fn", resolved)
    # A subclass may replace `call`.
    is_own = isinstance(resolved, keras.losses.Loss) and (
        type(resolved).call is not _FunctionLoss.call or _is_opaque(resolved)
    )
    return not is_own and any(fn is known for known in SQUARES)


def _widened(loss: keras.losses.Loss, dtype: str) -> keras.losses.Loss:
    """The same loss, computed in a wider dtype than its inputs have."""
    return copied(loss, fn=SQUARES[loss.fn], _dtype=dtype)


def _variant(
    loss: keras.losses.Loss,
    call: Callable[..., Tensor],
    reduction: str | None = None,
) -> keras.losses.Loss:
    """A copy of a loss with another `call` and reduction."""
    return copied(loss, call=call, reduction=reduction)
