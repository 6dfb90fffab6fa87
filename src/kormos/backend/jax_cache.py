"""Keeps compiled code of JAX on disk, for later processes.

Compiling takes most of the time of the first fit of a small model.
"""

import hashlib
import importlib.util
import os
import pathlib
import platform
import sys

import jax
import jaxlib

# The name of a variable: `0` turns the cache on disk off, a path is its folder.
VARIABLE = "KORMOS_COMPILATION_CACHE"
# A program that takes less time to compile than this is not stored. Our choice.
_LEAST_SECONDS = 0.05
# The largest size of the cache in bytes. The oldest files are dropped first.
_MOST_BYTES = 2**30


def keep_compiled() -> None:
    """Turns on JAX' own cache on disk, unless the user has configured it."""
    chosen = os.environ.get(VARIABLE, "")
    is_set = jax.config.jax_compilation_cache_dir is not None
    if chosen == "0" or is_set or not jax.config.jax_enable_compilation_cache:
        return
    root = pathlib.Path(chosen) if chosen else _caches() / "kormos"
    folder = root / f"jax-{jaxlib.__version__}-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # There is no folder to which the user may write.
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS
    )
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if importlib.util.find_spec("filelock") is not None:
        # JAX uses it to lock the folder when it drops files.
        jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)


def _caches() -> pathlib.Path:
    """The folder in which programs of this user keep their caches."""
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    if sys.platform == "win32":
        return pathlib.Path(os.environ.get("LOCALAPPDATA", home / "AppData"))
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))


def _processor() -> str:
    """A short name of this kind of processor.

    Programs have instructions that another one may lack, and a home folder may
    be shared among machines.
    """
    told = platform.machine() + platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        flags = (
            line
            for line in cpuinfo.read_text().splitlines()
            if line.startswith(("flags", "Features", "model name"))
        )
        told += "".join(sorted(set(flags)))
    return hashlib.sha256(told.encode()).hexdigest()[:12]
