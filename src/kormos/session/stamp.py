"""The versions and the machine of a session, so that it can be repeated."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import sys
from typing import Any

import keras
import numpy as np

from kormos._version import __version__
from kormos.objective.base import FlatObjective


@dataclasses.dataclass(frozen=True)
class Stamp:
    """The versions and the machine of a session; `print` shows one line.

    Attributes:
        versions: dict from the names of packages, and `"python"`, to versions.
        backend: the backend of Keras.
        device: the device that held the variables.
        dtype: the dtypes of the variables, with commas between them.
        arithmetic: the dtype in which the loss was evaluated at the end.
        seed: the seed of `keras.utils.set_random_seed`, or `None` if none was
            set.
        threads: the number of threads that the backend may use, or of
            processors if that is not known.
        platform: the system and the processor.
    """

    versions: dict[str, str]
    backend: str
    device: str
    dtype: str
    arithmetic: str
    seed: int | None
    threads: int
    platform: str

    def __str__(self) -> str:
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return (
            f"{versions}; {self.backend} on {self.device}, {threads}; "
            f"{self.dtype}, evaluated in {self.arithmetic}; seed {self.seed}; "
            f"{self.platform}"
        )


def stamp_of(objective: FlatObjective) -> Stamp:
    """The `Stamp` of a session.

    Args:
        objective: what it minimizes.
    """
    backend = keras.backend.backend()
    variables = objective.variables
    # The objective of a bootstrap has parameters that are not variables.
    held = [v for v in variables if isinstance(v, keras.Variable)]
    dtypes = dict.fromkeys(str(v.dtype) for v in held)
    return Stamp(
        versions=dict(_versions(backend)),
        backend=backend,
        device=_device(held[0].value) if held else "cpu",
        dtype=", ".join(dtypes) or "float64",
        arithmetic=_dtype_with(objective.evaluation_eps),
        seed=_seed(),
        threads=_threads(backend),
        platform=f"{platform.system()} {platform.machine()}",
    )


@functools.cache
def _versions(backend: str) -> dict[str, str]:
    names = ["keras", "numpy", "scipy", backend]
    found = {"kormos": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # Builds such as `tensorflow-cpu` have another name.
            module = sys.modules.get(name)
            found[name] = getattr(module, "__version__", "unknown")
    return found


def _device(value: Any) -> str:
    """The device of a tensor, or its first one and their number."""
    if keras.backend.backend() == "jax":
        devices = sorted(value.devices(), key=lambda device: device.id)
        first = f"{devices[0].platform}:{devices[0].id}"
        more = len(devices) - 1
        return f"{first} and {more} more" if more else first
    # TensorFlow's name is a path through jobs and tasks.
    device = str(getattr(value, "device", "unknown"))
    return device.rpartition("device:")[2].lower()


def _dtype_with(eps: float) -> str:
    """The dtype that has this machine epsilon."""
    for name in ("float64", "float32"):
        if eps <= np.finfo(name).eps:
            return name
    return "bfloat16 or float16"


def _seed() -> int | None:
    """The seed that was set, for which Keras has no public function."""
    try:
        from keras.src.utils import rng_utils
    except ImportError:
        return None
    seed: int | None = rng_utils.get_random_seed()
    return seed


def _threads(backend: str) -> int:
    if backend == "torch":
        import torch

        return torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
