"""Whether what was compiled is the loss, and its gradient sees it.

A backend may keep what it traced of a user's function before, and code may
read a variable where nothing can be put in its place. The loss is then another
one wherever the variables are not what they were, without a word.
"""

import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import NARROW
from kormos.arithmetic.vectors import rounding as spacing
from kormos.float64.settings import is_true_float64

# By which part of itself the loss must change, and by how many times what a
# rounding of the variables does, for that to be no rounding.
_EXPONENT, _AMPLIFIED = 0.55, 30
# Steps that show whether a loss changes without a gradient, and by how much
# they may bend.
_STEP, _STRAIGHT = 1e-2, 0.1
# What accelerators may round the factors of a float32 product to.
_TENSOR_CORES = 2.0**-11
# So far from the start are the points to compare at, in sizes of parameters.
_REACHES = 0.1, 1e-3

RANDOM = (
    "A loss must be the same whenever it is computed, and so must a row of "
    "residuals: random numbers that are drawn within are others each time. "
    "Draw them before, and give them as data, which "
    "`kormos.callbacks.Resample` draws anew."
)


def verify(objective, evaluate, theta, project):
    """Refuses a compiled loss that is another function than the loss.

    At the start it may be right by what was kept of it: another point tells.

    Args:
        objective: a `FlatObjective`.
        evaluate: the compiled loss of a point, alone or with its gradient.
        theta: the start.
        project: function that moves a point into the bounds.

    Raises:
        ValueError: if they differ by more than rounding explains.
    """
    if objective.is_streamed or objective.draws:
        return

    for reach in _REACHES:
        point, own = objective.reference(
            project(moved(objective, theta, reach))
        )
        if np.isfinite(own):
            break
    else:
        return
    found = evaluate(point)
    found = float(found[0] if isinstance(found, tuple) else found)
    if not _differ(objective, found, own):
        return
    _, again = objective.reference(point)
    if _differ(objective, again, own):
        raise ValueError(
            f"{RANDOM} Received: losses of {own:.6g} and {again:.6g} at the "
            "same values of the variables"
        )
    noise = abs(again - own)
    rng = np.random.default_rng(1)
    for _ in range(2):
        signs = rng.choice([-1.0, 1.0], size=point.shape)
        beside = project(point * (1 + _rounding(objective) * signs))
        noise = max(noise, abs(objective.reference(beside)[1] - own))
    if abs(found - own) <= _AMPLIFIED * noise:
        return
    raise ValueError(
        "The loss, compiled, must be the loss of the variables as they are: "
        "a function that was compiled or traced before (`jax.jit`, "
        "`tf.function`) keeps what it read, and so does a tensor that was "
        "computed from a variable outside of the loss. Read variables, of "
        "those that are trained, in functions that are not compiled. "
        f"Received: near the start, a loss of {own:.6g} that is {found:.6g} "
        "when it is compiled"
    )


def refuse_silent(objective, theta, silent):
    """Refuses variables that change a loss whose gradient does not say so.

    It changes in proportion to a short step, as no step function does: that
    of units in saturation, say.

    Args:
        objective: a `FlatObjective`.
        theta: a point.
        silent: list of variables in which the gradient there is zero.

    Raises:
        ValueError: naming them.
    """
    if objective.is_streamed or objective.draws:
        return
    _, here = objective.reference(theta)

    def change(variables, reach):
        packing, chosen = objective.program.packing, {id(v) for v in variables}
        ends = map(packing.split_array, (theta, moved(objective, theta, reach)))
        parts = [
            there if id(v) in chosen else own
            for v, own, there in zip(packing.variables, *ends, strict=True)
        ]
        return objective.reference(packing.join_arrays(parts))[1] - here

    def changing(variables):
        far, half, near = (change(variables, _STEP / n) for n in (1, 2, 4))
        return _differ(objective, here + near, here) and all(
            abs(a - 2 * b) <= _STRAIGHT * abs(a)
            for a, b in ((far, half), (half, near))
        )

    if not changing(silent):
        return
    names = [v.path for v in silent if changing([v])]
    raise ValueError(
        "Variables to train must have a gradient where they change the loss: "
        "`stop_gradient`, rounding and integers have none. Freeze such "
        "variables (`layer.trainable = False`), or leave them out. Received: "
        f"{', '.join(names)}, with a gradient of zero"
    )


def moved(objective, theta, reach):
    """A point beside another, every parameter of it moved."""
    rng = np.random.default_rng(0)
    parts = []
    for part in objective.program.packing.split_array(theta):
        usual = np.mean(np.abs(part)) if np.size(part) else 0.0
        size = np.where(part == 0, usual or 1.0, np.abs(part))
        sign = rng.choice([-1.0, 1.0], size=np.shape(part))
        share = rng.uniform(0.5, 1.0, size=np.shape(part))
        parts.append(part + reach * size * sign * share)
    return objective.program.packing.join_arrays(parts)


def _differ(objective, a, b):
    """Whether two losses differ by more than rounding mostly does."""
    if not np.isfinite([a, b]).all():
        return False
    share = _rounding(objective) ** _EXPONENT
    return abs(a - b) > share * max(abs(a), abs(b))


def _rounding(objective):
    rounding = max(objective.epsilon, objective.rounding)
    if not is_true_float64() and objective.program.packing.dtype is None:
        # Keras may compute what is float64 in float32.
        rounding = max(rounding, spacing("float32"))
    is_fine = rounding < NARROW or backend.on_cpu()
    return rounding if is_fine else max(rounding, _TENSOR_CORES)
