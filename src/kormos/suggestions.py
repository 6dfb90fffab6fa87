"""Suggests a known name in place of an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from collections.abc import Mapping


def did_you_mean(
    name: object,
    known: Iterable[str],
    others: Mapping[str, str] | None = None,
) -> str:
    """A question with the closest known name, or an empty string.

    Only letters and digits count, in any letter case.

    Args:
        name: the name that was given.
        known: the names that are known.
        others: dict from other names of the same things to the known ones.
    """
    if not isinstance(name, str):
        return ""
    plain = {_plain(other): k for other, k in (others or {}).items()}
    plain.update({_plain(k): k for k in known})
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.7)
    return f" Did you mean {plain[close[0]]!r}?" if close else ""


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
