"""The contributions of a model's compiled losses to the objective, by chunk.

A Keras loss divides by a count (rows, valid entries, the sum of the weights)
of the batch that it is given, so that the losses of two batches cannot be
added. Here every loss is split into a sum, which can be added, and its divisor,
which is counted once over all the data.

Keras' own code matches losses with targets, outputs and weights: the losses
are wrapped, and compiled into a model without layers whose `compute_loss`
calls them.
"""

from typing import Any
from typing import TypeAlias

import keras
from keras import ops
from keras import tree

from kormos.objective.keras_model.split_loss import SplitLoss
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

# A call of a term: `(term, y_true, y_pred, sample_weight)`.
Call: TypeAlias = tuple[SplitLoss, Tensor, Tensor, Tensor | None]


class CompiledLosses:
    """The sums and divisors of a model's compiled losses.

    Args:
        loss: the `loss` argument of `compile`, of any structure.
        loss_weights: the `loss_weights` argument of `compile`.
        output_names: the model's output names, or `None`.

    Attributes:
        is_float64: whether all losses can be computed in float64 for outputs in
            float32.
    """

    def __init__(
        self,
        loss: Structure,
        loss_weights: Structure,
        output_names: list[str] | None,
    ) -> None:
        # Each call of a loss is a term: one loss may serve several outputs.
        self._calls: list[Call] = []
        # The index of the term that is one while all others are zero.
        self._probed: int | None = None
        wrapped = [
            None if leaf is None else SplitLoss(leaf, self._note)
            for leaf in tree.flatten(loss)
        ]
        self._terms = [term for term in wrapped if term is not None]
        self.is_float64 = all(term.is_float64 for term in self._terms)
        self._shell = keras.Model()
        if output_names is not None:
            self._shell.output_names = output_names
        self._shell.compile(
            optimizer=None,
            loss=tree.pack_sequence_as(loss, wrapped),
            loss_weights=loss_weights,
        )

    @property
    def counts_values(self) -> bool:
        """Whether `counts` has depended on values, as a `SplitLoss` may."""
        return any(term.counts_values for term in self._terms)

    def _note(self, *call: Any) -> float:
        """Notes a call of a term; returns the value for Keras."""
        self._calls.append(call)
        return 1.0 if len(self._calls) - 1 == self._probed else 0.0

    def _total(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> Scalar:
        """Lets Keras call the terms; returns the total that it computes."""
        self._calls.clear()
        is_array = y is not None and not tree.is_nested(y)
        if is_array and tree.is_nested(y_pred):
            # If there are as many rows as outputs, Keras would otherwise take
            # each row for the targets of one output.
            y = [y]
        return self._shell.compute_loss(
            y=y, y_pred=y_pred, sample_weight=sample_weight
        )

    def calls(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> list[Call]:
        """The terms, with the data that Keras passes to each.

        Args:
            y: the targets.
            y_pred: the predictions, or anything else of their structure.
            sample_weight: the weights.
        """
        self._total(y, y_pred, sample_weight)
        # The data of a chunk are not kept until the next one.
        calls, self._calls = self._calls, []
        return calls

    def counts(
        self, y: Structure, y_pred: Structure, sample_weight: Structure
    ) -> list[tuple[Scalar, Scalar]]:
        """The divisors of the terms on these rows, as fractions.

        The divisors of chunks add up to those of all rows.

        Returns:
            A list of pairs of scalar tensors, numerator and denominator. The
            numerator is NaN for a term without a divisor.
        """
        terms = self.calls(y, y_pred, sample_weight)
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
        for i in range(len(self.calls(*data))):
            self._probed = i
            factors.append(float(self._total(*data)))
        self._probed = None
        return factors

    def total(
        self,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure,
        term_factors: Tensor,
    ) -> Scalar:
        """The sum of all terms on these rows, each times its factor."""
        total = ops.zeros((), dtype=term_factors.dtype)
        terms = self.calls(y, y_pred, sample_weight)
        for i, (term, *data) in enumerate(terms):
            total = total + term_factors[i] * term.sum(
                *data, dtype=term_factors.dtype
            )
        return total
