"""Ctrl-C: the first ends a session, a second one soon after ends the script."""

from __future__ import annotations

from kormos.processes import current
from kormos.processes import now

# A second Ctrl-C within this time ends the script, rather than only the next
# fit of a loop. Our choice.
SECONDS = 2.0


class _Latest:
    """The time of the latest interrupt of a session, by `processes.now`."""

    time: float | None = None


def take(error: KeyboardInterrupt) -> None:
    """Notes an interrupt that ends a session, and tells other processes.

    Args:
        error: the interrupt.

    Raises:
        KeyboardInterrupt: the same error, if another session was interrupted
            less than two seconds ago. With several processes it is never
            raised, because they would not agree on the time.
    """
    current().tell(error)
    before, _Latest.time = _Latest.time, now()
    is_second = before is not None and _Latest.time - before < SECONDS
    if is_second and current().is_alone:
        raise error
