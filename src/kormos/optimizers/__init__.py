"""Optimizers, by class and by name."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from kormos.optimizers.auto import Auto as Auto
from kormos.optimizers.base import BatchOptimizer as BatchOptimizer
from kormos.optimizers.chain import Chain as Chain
from kormos.optimizers.dense import BFGS as BFGS
from kormos.optimizers.dense import SSBFGS as SSBFGS
from kormos.optimizers.dense import SSBroyden as SSBroyden
from kormos.optimizers.lbfgs import LBFGS as LBFGS
from kormos.optimizers.levenberg_marquardt import (
    LevenbergMarquardt as LevenbergMarquardt,
)
from kormos.optimizers.newton import GaussNewton as GaussNewton
from kormos.optimizers.newton import Newton as Newton
from kormos.optimizers.predecessor import OTHER_NAMES
from kormos.optimizers.scipy import ScipyBatchOptimizer as ScipyBatchOptimizer
from kormos.solvers.scipy.methods import METHODS
from kormos.suggestions import did_you_mean

# Every name that `compile(optimizer=...)` takes, and what it makes.
NAMES: dict[str, Callable[[], BatchOptimizer]] = {
    "auto": Auto,
    "lbfgs": LBFGS,
    "lm": LevenbergMarquardt,
    "newton": Newton,
    "gauss-newton": GaussNewton,
    "dense-bfgs": BFGS,
    "ssbfgs": SSBFGS,
    "ssbroyden": SSBroyden,
    "scipy": ScipyBatchOptimizer,
    **{
        name: functools.partial(ScipyBatchOptimizer, name=name, method=name)
        for name in METHODS
    },
}


def get(identifier: Any, argument: str = "identifier") -> BatchOptimizer:
    """Returns an optimizer of kormos, from a name or an instance.

    Args:
        identifier: String, in any letter case: `"auto"`, `"lbfgs"`,
            `"dense-bfgs"`, `"ssbfgs"`, `"ssbroyden"`, `"newton"`,
            `"gauss-newton"`, `"lm"`, a registered name, a method of
            `scipy.optimize.minimize`, or `"scipy"` for SciPy's L-BFGS-B. Or a
            `BatchOptimizer`, which is returned unchanged.
        argument: String, the name of the argument in an error. Defaults to
            `"identifier"`.

    Returns:
        A `BatchOptimizer`.

    Raises:
        ValueError: If the name is unknown.

    Example:

    ```python
    optimizer = kormos.optimizers.get("Newton-CG")
    ```
    """
    if isinstance(identifier, BatchOptimizer):
        return identifier
    if is_name(identifier):
        return NAMES[identifier.lower()]()
    raise ValueError(
        f"Argument `{argument}` must be a `BatchOptimizer` or, in any letter "
        f"case, one of {sorted(NAMES)}."
        f"{did_you_mean(identifier, NAMES, OTHER_NAMES)} "
        f"Received: {identifier!r}"
    )


def check_compiled(identifier: str) -> None:
    """Refuses a name that is unknown to both kormos and Keras.

    Args:
        identifier: the name that `compile` received.

    Raises:
        ValueError: if the name is unknown.
    """
    if is_name(identifier):
        return
    try:
        keras.optimizers.get(identifier)
    except ValueError as error:
        own = did_you_mean(identifier, NAMES, OTHER_NAMES)
        raise ValueError(
            f"{error}.{own or _of_keras(identifier)} The optimizers of kormos "
            f"are {sorted(NAMES)}; others are in `keras.optimizers`. "
            f"Received: optimizer={identifier!r}"
        ) from error


def _of_keras(identifier: str) -> str:
    kinds = vars(keras.optimizers).items()
    names = [name.lower() for name, kind in kinds if isinstance(kind, type)]
    return did_you_mean(identifier, names)


def is_name(identifier: Any) -> bool:
    """Whether a string names an optimizer of kormos."""
    return isinstance(identifier, str) and identifier.lower() in NAMES


def register(name: str, make: Callable[[], BatchOptimizer]) -> None:
    """Registers an optimizer under a name.

    `compile(optimizer=...)`, `kormos.fit` and `kormos.minimize` then accept the
    name, as they accept the names of kormos' own optimizers.

    Args:
        name: String, the new name.
        make: A subclass of `BatchOptimizer`, or a function of no arguments that
            returns an optimizer.

    Raises:
        ValueError: If the name is already in use, or `make` cannot be called.

    Example:

    ```python
    kormos.optimizers.register(
        "lbfgs-200", lambda: kormos.optimizers.LBFGS(memory=200)
    )
    model.compile(optimizer="lbfgs-200", loss="mse")
    ```
    """
    if not isinstance(name, str) or is_name(name) or not callable(make):
        raise ValueError(
            "Register a new name, and a class or function that makes the "
            f"optimizer. These names are already in use: {sorted(NAMES)}. "
            f"Received: name={name!r}, make={make!r}"
        )
    NAMES[name.lower()] = make
