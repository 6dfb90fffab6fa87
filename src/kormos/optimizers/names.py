"""Names of arguments of optimizers and of `fit`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from collections.abc import Collection
from typing import Any

from kormos.optimizers import predecessor
from kormos.suggestions import did_you_mean

# Arguments of `fit` that replace those of an optimizer for one fit.
_OVERRIDES = ("method", "options", "tol", "pretrain_fn", "stochastic")


def names_of(kind: type) -> list[str]:
    """The names of the arguments that make an optimizer of a class."""
    names: dict[str, None] = {}
    for cls in kind.__mro__:
        init = vars(cls).get("__init__")
        if init is None:
            continue
        parameters = inspect.signature(init).parameters.values()
        named = [
            p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        named += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        names.update(dict.fromkeys(named[1:] if "self" in named else named))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def check_names(kind: type, given: Collection[str]) -> None:
    """Refuses arguments that an optimizer of a class does not take.

    Args:
        kind: the class.
        given: the names that were given.

    Raises:
        TypeError: if some are unknown.
    """
    if not given:
        return
    known = names_of(kind)
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    advice = predecessor.advice(unknown, predecessor.ARGUMENTS)
    raise TypeError(
        f"{kind.__name__} got unexpected arguments.{advice}"
        f"{did_you_mean(unknown[0], known)} It takes {known}. "
        f"Received: {', '.join(unknown)}"
    )


def check_settings(
    fit: Callable[..., Any], optimizer: object, settings: Collection[str]
) -> None:
    """Refuses arguments of `fit` that neither it nor an optimizer knows.

    Args:
        fit: the function.
        optimizer: the optimizer.
        settings: the names that `fit` itself does not have.

    Raises:
        ValueError: if some are unknown.
    """
    kind = type(optimizer)
    if not settings or not kind.__module__.startswith("kormos."):
        return  # An optimizer of the user may have its own settings.
    others = [*_OVERRIDES, *names_of(kind)]
    unknown = [
        name
        for name in settings
        if name not in others and name not in predecessor.ARGUMENTS
    ]
    if not unknown:
        return
    own = [
        name
        for name, parameter in inspect.signature(fit).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    question = did_you_mean(unknown[0], own + others)
    takes = f" It takes {own}, and {list(_OVERRIDES)} of the optimizer."
    raise ValueError(
        f"`fit` has no such argument.{question or takes} "
        f"Received: {sorted(unknown)}"
    )
