"""A callback that draws new data between the iterations of a run."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable
from collections.abc import Hashable
from typing import TYPE_CHECKING
from typing import cast

import numpy as np
import scipy.spatial
from keras import tree

from kormos.checks import check_count
from kormos.session.replacement import Replacement
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.objective.base import FlatObjective
    from kormos.objective.functions.residuals import ResidualObjective


class Resample(Replacement):
    """Draws new data between iterations of `least_squares` and of `fit`.

    A fit on fixed points can make the residuals small at these points, while
    the solution is wrong between them. The state of the optimizer (damping and
    scale, or curvature) is kept when the points change. In `fit`, the sampler
    returns new rows `(x, y)`, or `(x, y, sample_weight)` if there are weights.

    With `candidates`, the points are drawn from that many candidates, with
    probabilities in proportion to `r**power / mean(r**power) + offset`, where r
    is the norm of the residuals at a point (Wu et al. 2023, arXiv:2207.10289).
    The draw is a systematic sampling (Madow 1949, Ann. Math. Statist. 20) along
    an order in which neighbours follow one another, so that by chance no region
    gets many more or many fewer points than its share.

    Args:
        sampler: Function `(count, rng)` that returns `count` new points, in the
            same structure as the points that they replace. `rng` is a
            `numpy.random.Generator`. The function may have further arguments:
            `iteration` receives the number of iterations so far (in `fit`, of
            epochs). `residuals`, only in `least_squares`, receives a function
            of any number of points that returns the norm of the residuals at
            each of them, an array of shape `(points,)`.
        every: Integer, the number of iterations (in `fit`, of epochs) between
            two draws.
        candidates: Integer, the number of points to draw from, or `None`, the
            default, to use the points of the sampler directly. It cannot be
            used in `fit`, where rows have no residuals.
        power: Float, the exponent of the residuals. Defaults to 1.
        offset: Float, the number that is added to the weight of every point.
            Defaults to 1.
        key: String, the entry of `data`, a dict, that the points replace, or
            `None`, the default, for the whole of it.
        seed: Integer, the seed of the generators, or `None` for any. Each draw
            has its own, so that a fit that continues from a backup draws the
            same points, as long as no run converged on its points before.
            Defaults to `0`.

    Raises:
        ValueError: If an argument cannot be used.

    Example:

    ```python
    v = keras.Variable([0.5, 0.5])

    def residual_fn(points):
        return v[0] * points[:, 0] ** 2 + v[1] * points[:, 1] - 1.0

    kormos.least_squares(
        residual_fn,
        [v],
        data=np.random.default_rng(0).uniform(-1, 1, (50, 2)),
        callbacks=[
            kormos.callbacks.Resample(
                lambda count, rng: rng.uniform(-1, 1, (count, 2)),
                every=10,
                candidates=1000,
            )
        ],
        max_iterations=30,
    )
    ```
    """

    def __init__(
        self,
        sampler: Callable[..., Structure],
        every: int,
        candidates: int | None = None,
        power: float = 1.0,
        offset: float = 1.0,
        key: Hashable | None = None,
        seed: int | None = 0,
    ):
        if not callable(sampler):
            raise ValueError(
                "Argument `sampler` must be a function `(count, rng)` that "
                f"returns points. Received: {sampler!r}"
            )
        super().__init__(every)
        if candidates is not None:
            check_count("candidates", candidates, 1)
        self._sampler = sampler
        self._asks = _asks(sampler)
        self._candidates = candidates
        self._power = power
        self._offset = offset
        self._key = key
        if seed is not None:
            check_count("seed", seed, 0)
        self._seed = secrets.randbits(128) if seed is None else seed
        self._fits = 0

    def check(self, objective: FlatObjective) -> None:
        """Refuses an objective whose data cannot be replaced.

        Raises:
            ValueError: If there are no data, no entry `key`, or more points
                than candidates.
        """
        data, key = getattr(objective, "data", None), self._key
        if data is None:
            raise ValueError(
                "A `Resample` replaces data in memory: pass `data` to "
                "`kormos.least_squares`, or arrays to `fit` without "
                "`stream=True`. Received: no such data"
            )
        if key is not None and not (isinstance(data, dict) and key in data):
            raise ValueError(
                "Argument `key` of a `Resample` must be a key of `data`, a "
                f"dict. Received: key={key!r}"
            )
        if not hasattr(objective, "row_norms"):
            self._refuse_residuals()
        rows = self._rows(data)
        if self._candidates is not None and self._candidates < rows:
            raise ValueError(
                "Argument `candidates` of a `Resample` must be at least the "
                f"{rows} points that are drawn from them. "
                f"Received: candidates={self._candidates}"
            )

    def _refuse_residuals(self) -> None:
        """Refuses what needs residuals, where rows have none."""
        name, received = "candidates", f"candidates={self._candidates}"
        if self._candidates is None:
            if "residuals" not in self._asks:
                return
            name, received = "sampler", "a sampler with an argument `residuals`"
        raise ValueError(
            f"Argument `{name}` of a `Resample` needs residuals, which only "
            "`kormos.least_squares` has: leave it out in `fit`. "
            f"Received: {received}"
        )

    def begin(self, objective: FlatObjective, iteration: int) -> None:
        self._fits = max(1, self._fits + (iteration == 0))
        if iteration >= self._every:
            self.replace(objective, iteration - iteration % self._every)

    def replace(self, objective: FlatObjective, iteration: int) -> None:
        residuals = cast("ResidualObjective", objective)
        data, key = residuals.data, self._key
        # A fit that continues from a backup draws the same points again.
        rng = np.random.default_rng([self._seed, self._fits, iteration])

        def norms(points: Structure) -> Vector:
            return residuals.row_norms(_with(data, key, points), key)

        known = {"iteration": iteration, "residuals": norms}
        asked = {name: known[name] for name in self._asks}
        count = self._rows(data)
        points = self._sampler(self._candidates or count, rng, **asked)
        if self._candidates is not None:
            points = _rows_of(points, _along_neighbours(points))
            marks = np.arange(count, dtype="float64") + rng.uniform()
            points = _rows_of(points, self._chosen(norms(points), marks))
        residuals.replace(_with(data, key, points))

    def carry(
        self, before: FlatObjective, objective: FlatObjective, iteration: int
    ) -> None:
        del iteration
        data = cast("ResidualObjective", before).data
        cast("ResidualObjective", objective).replace(data)

    def _rows(self, data: Structure) -> int:
        old = data if self._key is None else data[self._key]
        return len(tree.flatten(old)[0])

    def _chosen(self, norms: Vector, marks: Vector) -> Array:
        """The points that are drawn.

        Args:
            norms: the norm of the residuals at each candidate.
            marks: equidistant numbers, one for each point to draw.
        """
        weights = norms**self._power
        weights = weights / max(float(np.mean(weights)), 1e-300) + self._offset
        ends = np.cumsum(_inclusions(weights, len(marks)))
        # The last end is the count, except for rounding.
        return np.searchsorted(ends, np.minimum(marks, ends[-1]))


def _asks(sampler: Callable[..., Structure]) -> list[str]:
    """The arguments of a sampler besides the count and the generator."""
    try:
        parameters = inspect.signature(sampler).parameters
    except (TypeError, ValueError):  # A function of C has no signature.
        return []
    return [name for name in ("iteration", "residuals") if name in parameters]


def _along_neighbours(points: Structure) -> Array:
    """An order of points, that of the leaves of a tree of boxes."""
    arrays = [np.asarray(a, "float64") for a in tree.flatten(points)]
    flat = [a.reshape(len(a), -1) for a in arrays]
    return scipy.spatial.KDTree(np.hstack(flat), leafsize=4).indices


def _inclusions(weights: Vector, count: int) -> Vector:
    """Probabilities of being drawn: of sum `count`, at most 1 each.

    They are proportional to the weights where they are below 1.
    """
    # Enough points can be drawn even where few have a weight.
    weights = weights + 1e-9 * weights.max(initial=1e-300)
    certain = np.zeros(len(weights), bool)
    while True:
        share = (count - certain.sum()) / weights[~certain].sum()
        found = np.where(certain, 1.0, weights * share)
        if not (found > 1).any():
            return found
        certain |= found > 1


def _rows_of(points: Structure, rows: Array) -> Structure:
    return tree.map_structure(lambda a: np.asarray(a)[rows], points)


def _with(
    data: Structure, key: Hashable | None, points: Structure
) -> Structure:
    return points if key is None else {**data, key: points}
