"""Ctrl-C: the first ends a session, a second one soon after ends the script."""

from __future__ import annotations

from kormos.processes import current
from kormos.processes import now

# A second Ctrl-C within this time ends the script, and not only the next fit of
# a loop. This is a choice of ours.
SECONDS = 2.0


class _Latest:
    """When a session was interrupted last, by `processes.now`."""

    time: float | None = None


def take(error: KeyboardInterrupt) -> None:
    """Notes an interrupt that is to end a session, and tells other processes.

    Args:
        error: the interrupt.

    Raises:
        KeyboardInterrupt: the same, if another session was interrupted less
            than two seconds ago. Several processes would not agree on the
            time, and end their sessions only.
    """
    current().tell(error)
    before, _Latest.time = _Latest.time, now()
    is_second = before is not None and _Latest.time - before < SECONDS
    if is_second and current().is_alone:
        raise error
