"""Kinks of a loss in its parameters: the L1 regularizers of Keras."""

import keras

from kormos.inspection.report import Finding
from kormos.objective import Objective

_WITH_L1 = (keras.regularizers.L1, keras.regularizers.L1L2)


def kinks(objective: Objective) -> Finding:
    """Whether a regularizer gives the loss kinks, at which methods stop."""
    names = tuple(v.path for v in objective.variables if _has_l1(v))
    if not names:
        return Finding("kinks", True, "No variable has an L1 regularizer.")
    return Finding(
        "kinks",
        False,
        f"The L1 regularizer of {', '.join(names)} has a kink where an entry "
        "is zero. Methods stop there, above the minimum: write these weights "
        "as differences of two non-negative parts.",
        names,
        is_fatal=False,
    )


def _has_l1(variable: keras.Variable) -> bool:
    regularizer = getattr(variable, "regularizer", None)
    if not isinstance(regularizer, _WITH_L1):
        return False
    return float(keras.ops.convert_to_numpy(regularizer.l1)) > 0
