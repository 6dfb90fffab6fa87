"""HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable
from collections.abc import Sequence


def paragraph(text: str, is_bold: bool = False) -> str:
    """A paragraph of a text."""
    said = html.escape(text)
    return f"<p><b>{said}</b></p>" if is_bold else f"<p>{said}</p>"


def pairs_table(pairs: Iterable[tuple[str, str]]) -> str:
    """A table with a name and a value in each row."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in pairs
    )
    return f"<table>{rows}</table>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose rows begin with their names.

    Args:
        head: the headings of the columns.
        rows: the cells of each row.
    """
    columns = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{html.escape(row[0])}</th>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    )
