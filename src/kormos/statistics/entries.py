"""Sums over the entries of a Keras model's data that count in its loss.

An entry is a value of a loss before it is reduced: a row, or a step of a row.
Masks, `ignore_class` and weights of zero hide entries.
"""

from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from kormos import backend
from kormos.data.variables import values_of
from kormos.objective.keras_model.objective import Objective
from kormos.types import Array
from kormos.types import Vector


def entry_sums(
    objective: Objective, is_count: Sequence[bool]
) -> tuple[Vector, Vector]:
    """Sums of the weights and of log y!, for each of a model's losses.

    Args:
        objective: the objective of a model.
        is_count: whether the targets of a loss are counts.

    Returns:
        The sums of the entries' weights; and the sums of log y! times the
        weights, which are zero for targets that are no counts. Both are NaN
        for a loss with its own reduction, or a model with its own loss.
    """
    if objective.program.model_loss.terms.compiled is None:
        return np.full(len(is_count), np.nan), np.full(len(is_count), np.nan)
    weights, logs = np.zeros(len(is_count)), np.zeros(len(is_count))
    for terms in _entries(objective):
        for i, (targets, own) in enumerate(terms):
            weights[i] += own.sum()
            if is_count[i]:
                logs[i] += _log_factorials(targets, own)
    return weights, logs


def _entries(objective: Objective) -> Iterator[list[tuple[Array, Array]]]:
    """Yields the targets of a chunk in each loss, and the entries' weights."""
    model_loss = objective.program.model_loss
    stateless, compiled = model_loss.stateless, model_loss.terms.compiled
    assert compiled is not None  # The caller has asked.
    frozen = values_of(stateless.frozen_variables)
    parts = values_of(stateless.variables)
    for x, y, w in objective.arguments.each_chunk():
        with stateless.scope(parts, frozen), backend.float64():
            calls = compiled.calls(y, stateless(x), w)
            found = [
                (y_true, term.entry_weights(y_true, *others))
                for term, y_true, *others in calls
            ]
        yield [
            (
                backend.to_numpy(y_true),
                np.asarray(
                    np.nan if own is None else backend.to_numpy(own), "float64"
                ),
            )
            for y_true, own in found
        ]


def _log_factorials(counts: Array, weights: Array) -> float:
    """The sum of log y! over counts, whose last axis is that of an entry."""
    logs = gammaln(np.asarray(counts, "float64") + 1)
    return float(np.sum(logs.reshape(*weights.shape, -1).sum(-1) * weights))
