"""Explains what to do if the backend of Keras is not installed."""

from __future__ import annotations

import importlib.util

# The backends of kormos, by the names of their packages.
BACKENDS = ("jax", "tensorflow", "torch")


def explained(error: ImportError) -> ImportError:
    """The error in words, if Keras' backend is not installed.

    Args:
        error: the exception of `import keras`.
    """
    if error.name not in BACKENDS:
        return error
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    if installed:
        advice = (
            f"The installed ones are {installed}: set the variable "
            "KERAS_BACKEND to one of them before Python starts, for example "
            f"`KERAS_BACKEND={installed[0]}`; or "
            f"`pip install 'kormos[{error.name}]'`."
        )
    else:
        advice = (
            "None of the backends of kormos is installed: `pip install "
            f"'kormos[{error.name}]'`, or another of {list(BACKENDS)} with "
            "the variable KERAS_BACKEND set to its name."
        )
    return ImportError(
        f"Keras is configured to run on {error.name!r}, which is not "
        f"installed. {advice} Received: {error}",
        name=error.name,
    )
