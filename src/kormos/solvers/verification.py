"""Checks that the compiled loss is the user's, with a complete gradient.

A backend may reuse an earlier trace of a user's function, and code may read a
variable in a way that kormos cannot intercept. The compiled loss then silently
uses old values of the variables.
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import NARROW
from kormos.arithmetic.vectors import rounding as spacing
from kormos.float64.settings import is_true_float64
from kormos.solvers.protocols import ComparableObjective
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Vector

# These numbers are our choices. They lean towards not refusing, because a wrong
# refusal stops a user who made no mistake.

# Two losses differ if their relative difference is more than this power of the
# rounding: about half of the digits.
_EXPONENT = 0.55
# But they do not differ if the difference is at most this many times that of
# the losses at variables that are rounded differently.
_AMPLIFIED = 30
# Variables change by this part of their size, and by a half and a quarter of
# it, to show whether the loss changes in proportion; it may miss that by the
# second part.
_STEP, _BEND = 1e-2, 0.1
# Tensor cores may round the factors of a float32 product to this
# (TensorFloat-32 has ten bits after the point).
_TENSOR_CORES = 2.0**-11
# Losses are compared this far from the start, too, in sizes of the parameters;
# at the next distance if the loss is not finite at the one before.
_REACHES = 0.1, 1e-3

RANDOM = (
    "A loss, or a row of residuals, must be the same whenever it is "
    "computed, but random numbers that are drawn in it differ each time. "
    "Draw them before, and pass them as data, which "
    "`kormos.callbacks.Resample` can draw again."
)


def verify(
    objective: ComparableObjective,
    evaluate: Callable[[Vector], Any],
    theta: Vector,
    project: Callable[[Vector], Vector],
    known: float | None = None,
) -> None:
    """Refuses a compiled loss that is not the user's function.

    The two are compared at the start and at another point, because old values
    of the variables may be those of the start.

    Args:
        objective: the objective, with its data in memory.
        evaluate: the compiled function of a point, which returns the loss, or
            the loss and its gradient.
        theta: the start.
        project: function that moves a point into the bounds.
        known: the compiled loss at the start, or `None` to compute it.

    Raises:
        ValueError: if the two differ by more than rounding explains.
    """

    def compiled(point: Vector) -> float:
        if known is not None and np.array_equal(point, theta):
            return known
        found = evaluate(point)
        return float(found[0] if isinstance(found, tuple) else found)

    comparison = _Comparison(objective, compiled, project)
    comparison.at(theta, "at")
    for reach in _REACHES:
        if comparison.at(project(moved(objective, theta, reach)), "near"):
            return


def is_unchanged(
    objective: ComparableObjective, theta: Vector, loss: float
) -> bool:
    """Whether the user's function computes the same loss as before at a point.

    Args:
        objective: the objective, with its data in memory.
        theta: the point.
        loss: the loss that it had there.
    """
    _, own = objective.reference(theta)
    if not np.isfinite(loss):
        return True
    if not np.isfinite(own):
        return False
    comparison = _Comparison(objective, lambda _: loss, lambda point: point)
    return comparison.is_same(theta, loss, own)


class _Comparison:
    """Compares a compiled loss with the loss as the user wrote it.

    Args:
        objective: the objective, which evaluates the latter.
        compiled: the compiled loss, as a function of a point.
        project: function that moves a point into the bounds.
    """

    def __init__(
        self,
        objective: ComparableObjective,
        compiled: Callable[[Vector], float],
        project: Callable[[Vector], Vector],
    ) -> None:
        self._objective = objective
        self._compiled = compiled
        self._project = project

    def at(self, theta: Vector, where: str) -> bool:
        """Compares at a point; returns whether the loss is finite there.

        Args:
            theta: the point.
            where: what an error says of it: `"at"` or `"near"` the start.

        Raises:
            ValueError: if the two differ by more than rounding explains.
        """
        point, own = self._objective.reference(theta)
        if not np.isfinite(own):
            return False
        found = self._compiled(point)
        if not self.is_same(point, found, own):
            raise ValueError(
                "The compiled loss must depend on the present values of the "
                "variables: a function that was compiled or traced before "
                "(`jax.jit`, `tf.function`) keeps the values that it read, "
                "and so does a tensor that was computed from a variable "
                "outside of the loss. Read the variables that are trained in "
                f"functions that are not compiled. Received: {where} the "
                f"start, a loss of {own:.6g} that is {found:.6g} when it is "
                "compiled"
            )
        return True

    def is_same(self, point: Vector, found: float, own: float) -> bool:
        """Whether a loss is the one that the user wrote, up to rounding.

        Args:
            point: the point.
            found: the loss there.
            own: the loss there as the user wrote it.
        """
        return not differ(self._objective, found, own) or self._explains(
            abs(found - own), point, own
        )

    def _explains(self, difference: float, point: Vector, own: float) -> bool:
        """Whether the rounding of the variables explains a difference.

        Args:
            difference: that of two losses at a point.
            point: the point.
            own: the loss there as the user wrote it.

        Raises:
            ValueError: if the loss itself differs when it is computed again.
        """
        objective = self._objective
        _, again = objective.reference(point)
        if differ(objective, again, own):
            raise ValueError(
                f"{RANDOM} Received: losses of {own:.6g} and {again:.6g} at "
                "the same values of the variables"
            )
        noise = abs(again - own)
        rng = np.random.default_rng(1)
        for _ in range(2):
            signs = rng.choice([-1.0, 1.0], size=point.shape)
            beside = self._project(point * (1 + _rounding(objective) * signs))
            noise = max(noise, abs(objective.reference(beside)[1] - own))
        return difference <= _AMPLIFIED * noise


def refuse_silent(
    objective: ComparableObjective,
    theta: Vector,
    silent: list[keras.Variable],
) -> None:
    """Refuses variables that change the loss although their gradient is zero.

    A variable is only refused if the loss changes in proportion to a short
    step. A step function, such as a saturated unit after rounding, has no
    gradient.

    Args:
        objective: the objective, with its data in memory.
        theta: a point.
        silent: the variables whose gradient there is zero.

    Raises:
        ValueError: naming the variables.
    """
    _, here = objective.reference(theta)

    def change(variables: list[keras.Variable], reach: float) -> float:
        there = moved(objective, theta, reach)
        point = with_values_of(objective, theta, there, variables)
        return objective.reference(point)[1] - here

    def changing(variables: list[keras.Variable]) -> bool:
        far, half, near = (change(variables, _STEP / n) for n in (1, 2, 4))
        return differ(objective, here + near, here) and all(
            abs(a - 2 * b) <= _BEND * abs(a)
            for a, b in ((far, half), (half, near))
        )

    if not changing(silent):
        return
    names = [v.path for v in silent if changing([v])]
    raise ValueError(
        "Variables that change the loss must have a gradient: "
        "`stop_gradient`, rounding and integers have none, and neither does "
        "`tf.recompute_grad`, which `keras.remat` can replace. Freeze such "
        "variables (`layer.trainable = False`), or leave them out. Received: "
        f"{', '.join(names)}, with a gradient of zero"
    )


def with_values_of(
    objective: ComparableObjective,
    theta: Vector,
    other: Vector,
    variables: list[keras.Variable],
) -> Vector:
    """A point in which some variables have their values of another point.

    Args:
        objective: the objective.
        theta: the point.
        other: the other point.
        variables: the variables that have their values of `other`.
    """
    packing, chosen = objective.program.packing, {id(v) for v in variables}
    ends = map(packing.split_array, (theta, other))
    return packing.join_arrays(
        [
            there if id(v) in chosen else own
            for v, own, there in zip(packing.variables, *ends, strict=True)
        ]
    )


def moved(
    objective: ComparableObjective, theta: Vector, reach: float
) -> Vector:
    """A point near another, with every parameter moved.

    Args:
        objective: the objective.
        theta: the other point.
        reach: the part of their size by which parameters move; zeros have the
            typical size of their variable.
    """
    packing = objective.program.packing
    return packing.join_arrays(moved_parts(packing.split_array(theta), reach))


def moved_parts(parts: Iterable[Array], reach: float) -> list[Array]:
    """Values of variables, with every entry moved.

    Args:
        parts: an array for each variable.
        reach: see `moved`.
    """
    rng = np.random.default_rng(0)
    found = []
    for part in parts:
        usual = np.mean(np.abs(part)) if np.size(part) else 0.0
        size = np.where(part == 0, usual or 1.0, np.abs(part))
        sign = rng.choice([-1.0, 1.0], size=np.shape(part))
        share = rng.uniform(0.5, 1.0, size=np.shape(part))
        found.append(part + reach * size * sign * share)
    return found


def differ(objective: ComparableObjective, a: Scalar, b: Scalar) -> bool:
    """Whether two losses differ by more than rounding usually explains."""
    if not np.isfinite([a, b]).all():
        return False
    share = _rounding(objective) ** _EXPONENT
    return abs(a - b) > share * max(abs(a), abs(b))


def _rounding(objective: ComparableObjective) -> float:
    """The machine epsilon of the coarsest arithmetic."""
    rounding = max(objective.evaluation_eps, objective.storage_eps)
    if not is_true_float64() and objective.program.packing.dtype is None:
        # Keras may compute float64 in float32.
        rounding = max(rounding, spacing("float32"))
    is_fine = rounding < NARROW or backend.on_cpu()
    return rounding if is_fine else max(rounding, _TENSOR_CORES)
