"""Covariance matrices of an estimate, by several estimators.

`classical` is the inverse of the expected information if the loss has one, and
`hessian` that of the observed information. `HC0` to `HC3` (MacKinnon and White,
1985) and `cluster` (Liang and Zeger, 1986) are sandwich estimators: they remain
valid if the variance differs between rows, or if the rows of a group are
correlated. With several outputs in a row, HC2 and HC3 use the leverage as a
matrix, as Bell and McCaffrey (2002) do for groups.
"""

from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import numpy as np

from kormos.statistics.fits import Fit
from kormos.statistics.information import Information
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

KINDS = ("classical", "HC0", "HC1", "HC2", "HC3", "cluster", "hessian")
SANDWICHES = KINDS[1:6]
# These need whitened rows, not only scores.
_LEVERAGES = ("HC2", "HC3")

# How the values print by which NumPy and pandas mark a missing one.
_MISSING = ("None", "nan", "NaT", "<NA>")


class Scale(NamedTuple):
    """The numbers that a covariance matrix is multiplied by.

    Attributes:
        factor: the factor between the inverse of the loss's curvature and the
            covariance.
        observations: the number of observations.
        parameters: the number of parameters that the data determine.
    """

    factor: float
    observations: float
    parameters: float


def check_kind(kind: Any, groups: Any) -> None:
    """Refuses an unknown `covariance`, or one whose `groups` are missing."""
    if kind not in KINDS:
        raise ValueError(
            f"Argument `covariance` must be one of {list(KINDS)}. "
            f"Received: covariance={kind!r}"
        )
    if (kind == "cluster") != (groups is not None):
        raise ValueError(
            "Argument `groups`, the group of every row, is for "
            "`covariance='cluster'`: pass both or neither. Received: "
            f"covariance={kind!r}, "
            f"groups={'None' if groups is None else 'given'}"
        )


def sandwich(
    fit: Fit,
    information: Information,
    kind: str,
    scale: Scale,
    groups: Any = None,
) -> Matrix:
    """A covariance matrix from the scores of the rows.

    Args:
        fit: the fit.
        information: the information, in units of the loss.
        kind: one of `SANDWICHES`.
        scale: the numbers to correct by.
        groups: the group of every row, for `"cluster"`.

    Raises:
        ValueError: if the rows of the loss are not known.
    """
    root, left = information.root, scale.observations - scale.parameters
    factor = scale.observations / left if kind == "HC1" else 1.0
    places, rows = None, 0
    if kind == "cluster":
        names, places = np.unique(_labels(groups), return_inverse=True)
        _check_groups(len(names))
        sums = np.zeros((len(names), information.rank))
        factor = len(names) / (len(names) - 1)
        factor *= (scale.observations - 1) / left
    middle = np.zeros((information.rank, information.rank))
    for scores in _scores(fit, root, kind):
        first, rows = rows, rows + len(scores)
        if places is None:
            middle += scores.T @ scores
        elif rows <= len(places):
            np.add.at(sums, places[first:rows], scores)
    if places is not None:
        _check_groups(2, len(places), rows)
        middle = sums.T @ sums
    return factor * root @ middle @ root.T


def _labels(groups: Any) -> Array:
    """The group of every row, `(n,)`."""
    labels = np.asarray(groups)
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(
            "Argument `groups` must be an array of shape `(rows,)`. "
            f"Received: shape {labels.shape}"
        )
    is_missing = [
        not isinstance(label, str) and str(label) in _MISSING
        for label in labels.tolist()
    ]
    if any(is_missing):
        raise ValueError(
            "Argument `groups` must name the group of every row: leave out "
            "the other rows, or give them a group of their own. Received: "
            f"{sum(is_missing)} missing values, the first in row "
            f"{is_missing.index(True)}"
        )
    return labels


def _check_groups(count: int, entries: int = 0, rows: int = 0) -> None:
    """Refuses a single group, and groups of more or fewer rows."""
    if entries != rows:
        raise ValueError(
            "Argument `groups` must have an entry for each row of data. "
            f"Received: {entries} entries for {rows} rows"
        )
    if count < 2:
        raise ValueError(
            "A covariance by groups needs at least two groups. Received: "
            f"{count} group"
        )


def _scores(fit: Fit, root: Matrix, kind: str) -> Iterator[Matrix]:
    """Yields the scores of rows times the root, `(n, rank)`.

    Args:
        fit: the fit.
        root: the root of the inverse information, `(size, rank)`.
        kind: one of `SANDWICHES`.
    """
    if fit.scores is not None:
        if kind in _LEVERAGES:
            raise ValueError(
                f"Covariance '{kind}' needs the leverage of every row, which "
                "a loss that is not one of outputs does not have: use 'HC0' "
                f"or 'HC1'. Received: covariance={kind!r}"
            )
        yield fit.scores @ root
        return
    if not fit.has_rows:
        raise ValueError(
            f"Covariance '{kind}' needs the loss of every row: use 'hessian', "
            "or, after `kormos.minimize`, give `losses`, a function of no "
            "arguments that returns the negative log-likelihood of every row. "
            f"Received: covariance={kind!r}"
        )
    for block in fit.rows():
        if kind in _LEVERAGES:
            turned = block.matrix @ root
            errors = _adjusted(turned, block.errors, kind)
            yield np.einsum("nkr,nk->nr", turned, errors)
        else:
            yield block.scores @ root


def _adjusted(turned: Array, errors: Matrix, kind: str) -> Matrix:
    """The errors, divided by the part that their rows' leverage leaves.

    Args:
        turned: the whitened rows times the root, `(n, k, rank)`.
        errors: the whitened errors.
        kind: `"HC2"` or `"HC3"`.
    """
    power = -0.5 if kind == "HC2" else -1.0
    leverage = turned @ turned.swapaxes(1, 2)
    if leverage.shape[1] == 1:
        left = np.maximum(1 - leverage[:, :, 0], np.finfo(float).tiny)
        return errors * left**power
    values, vectors = np.linalg.eigh(np.eye(leverage.shape[1]) - leverage)
    values = np.maximum(values, np.finfo(float).eps) ** power
    own = np.einsum("nkj,nk->nj", vectors, errors)
    return np.einsum("nkj,nj->nk", vectors, values * own)


def standard_errors(covariance: Matrix, information: Information) -> Vector:
    """The roots of the diagonal; NaN for held or undetermined parameters."""
    errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    unknown = information.is_held | ~information.is_identified
    return np.where(unknown, np.nan, errors)


def correlation(covariance: Matrix, errors: Vector) -> Matrix:
    """The correlation of the parameters; NaN where there are no errors."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = covariance / errors / errors[:, None]
    found = np.clip(found, -1.0, 1.0)
    known = np.isfinite(errors) & (errors > 0)
    found[known, known] = 1.0
    return found
