"""The free memory of the machine, and a check that matrices fit into it."""

import math
import os
import pathlib

_LINUX = pathlib.Path("/proc/meminfo")
# The files with a container's limit and its use, in both versions of Linux'
# control groups.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def free_bytes() -> float:
    """The bytes that this process may still allocate.

    On Linux they are the available memory, or less if a container has a limit.
    On other systems they are all of the memory, or infinity if that is not
    known.
    """
    limits = [_of_container(*paths) for paths in _LIMITS]
    return min([_of_machine(), *limits])


def check_square(needs: str, size: int, matrices: int, instead: str) -> None:
    """Refuses dense matrices that do not fit into the free memory.

    Args:
        needs: the beginning of the message, which says what needs them.
        size: the number of parameters, rows and columns of a float64 matrix.
        matrices: the number of matrices that are held at once, including
            workspace.
        instead: a sentence that says what to do instead.

    Raises:
        ValueError: if they do not fit.
    """
    needed, free = 8.0 * matrices * size**2, free_bytes()
    if needed > free:
        raise ValueError(
            f"{needs}, which takes {_readable(needed)} of memory for {size:,} "
            f"parameters, and {_readable(free)} are free. {instead} "
            f"Received: {size:,} parameters"
        )


def _of_machine() -> float:
    try:
        for line in _LINUX.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return 1024.0 * int(rest.split()[0])
    except (OSError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _of_container(limit: str, used: str) -> float:
    try:
        numbers = [pathlib.Path(p).read_text().strip() for p in (limit, used)]
        return max(0.0, float(int(numbers[0]) - int(numbers[1])))
    except (OSError, ValueError):
        return math.inf  # No limit: the file is missing, or says "max".


def _readable(count: float) -> str:
    if count < 1e9:
        return f"{count / 1e6:,.0f} MB"
    return f"{count / 1e9:,.1f} GB"
