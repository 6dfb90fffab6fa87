"""Losses that are not means over rows, so that they depend on `batch_size`."""

import operator
from typing import NamedTuple

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.memory import Data
from kormos.data.variables import snapshot
from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.loss import ModelLoss
from kormos.objective.keras_model.loss_terms import LossTerms
from kormos.solvers.protocols import ComparableObjective
from kormos.solvers.verification import differ
from kormos.types import Array
from kormos.types import Structure
from kormos.warn import warn

# Outputs are the same if they differ by no more than this part of the largest
# one, because accelerators round to ten bits. Our choice.
_SAME = 1e-3


class Coupling(NamedTuple):
    """A loss of rows that is not the mean of the losses of their halves.

    Attributes:
        name: what couples the rows.
        whole: the loss of the rows.
        halves: the mean of the losses of their halves.
    """

    name: str
    whole: float
    halves: float


def may_couple(model_loss: ModelLoss) -> bool:
    """Whether the loss may couple rows, and was not checked for that.

    Keras' own losses do not. In training, and with random numbers, rows differ
    by their place in a batch anyway.
    """
    if model_loss.is_compared or model_loss.stateless.draws:
        return False
    terms = model_loss.terms
    is_own = terms.own_name is not None or bool(terms.own_names)
    return is_own or model_loss.adds_row_losses


def coupling(
    objective: ComparableObjective, model_loss: ModelLoss, head: Data
) -> Coupling | None:
    """Compares the loss of rows with the mean of those of their two halves.

    The weights are moved, because a loss that is nearly zero consists of
    rounding errors.

    Args:
        objective: the objective.
        model_loss: its loss.
        head: the rows, as tensors.

    Returns:
        What was found, or `None` if the loss is a mean over rows, or fails on
        another number of them.
    """
    stateless, terms = model_loss.stateless, model_loss.terms
    rng = np.random.default_rng(0)
    parts = [
        part + ops.cast(0.1 * rng.standard_normal(part.shape), part.dtype)
        for part in snapshot(stateless.variables)
    ]
    frozen = snapshot(stateless.frozen_variables)
    term_factors = terms.ones(model_loss.outputs.dtype)

    def evaluate(x: Structure, y: Structure, w: Structure) -> Structure:
        with stateless.scope(parts, frozen):
            y_pred = stateless(x)
            loss = terms.total(x, y, y_pred, w, term_factors)
            return [*tree.flatten(y_pred), loss]

    rows = leading_size(head.x)
    cuts = slice(None), slice(rows // 2), slice(rows // 2, None)
    found: list[list[Array]] = []
    try:
        for cut in cuts:
            piece = head.map(operator.itemgetter(cut))
            with backend.float64():
                values = backend.once(evaluate)(*piece)
            found.append([backend.to_numpy(v) for v in values])
    except Exception:
        return None  # It needs as many rows as there are.
    whole, *halves = (float(values[-1]) / rows for values in found)
    if not differ(objective, whole, sum(halves)):
        return None
    name = _name(terms, model_loss.adds_row_losses)
    for output, *pair in zip(*(values[:-1] for values in found), strict=True):
        if np.ndim(output) and not _is_same(output, np.concatenate(pair)):
            name = "the outputs of a row, which depend on other rows"
    return Coupling(name, whole, sum(halves))


def _is_same(a: Array, b: Array) -> bool:
    size = np.max(np.abs(a), initial=0)
    return a.shape == b.shape and np.allclose(a, b, 0, _SAME * size, True)


def _name(terms: LossTerms, adds_row_losses: bool) -> str:
    if terms.own_name is not None:
        return terms.own_name
    names = [f"the loss {name}" for name in terms.own_names]
    return ", ".join(names + ["`add_loss` in a layer"] * adds_row_losses)


def warn_of_coupling(
    objective: ComparableObjective, model_loss: ModelLoss, head: Data
) -> None:
    """Warns once of a loss that depends on `batch_size`.

    Args:
        objective: the objective.
        model_loss: its loss.
        head: the rows of a chunk, as tensors.
    """
    model_loss.is_compared = True
    found = coupling(objective, model_loss, head)
    if found is not None:
        warn(
            "The loss depends on `batch_size`, because it is not a mean over "
            "rows. Return a mean over the rows (note that arrays of shapes "
            "`(n,)` and `(n, 1)` broadcast to `(n, n)`), or put all rows "
            "into one batch, with their number as `batch_size`. Received: "
            f"{found.name}, which is {found.whole:.6g} for "
            f"{leading_size(head.x)} rows and {found.halves:.6g} for their "
            "two halves"
        )
