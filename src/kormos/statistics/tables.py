"""A summary as text and as HTML."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from kormos import markup

if TYPE_CHECKING:
    from kormos.statistics.summary import Summary

# Tables of more parameters show the first and the last ones. Our choice: this
# fits on a few screens.
_MOST_ROWS = 200
# Longer names are cut at their beginning, which is usually the same for all.
_LONGEST_NAME = 40


def as_text(summary: Summary) -> str:
    """The summary as lines of plain text."""
    head, rows = _head(summary), _rows(summary)
    lines = aligned(rows).split("\n")
    width = max(64, *map(len, lines))
    half = (width - 4) // 2
    pairs = [
        _spread(left, half) + "    " + _spread(right, half)
        for left, right in zip(head[::2], head[1::2], strict=True)
    ]
    rule = "-" * width
    notes = [_wrapped(note, width) for note in summary.notes]
    return "\n".join(
        [_title(summary), "=" * width]
        + [pair.rstrip() for pair in pairs]
        + [rule, lines[0], rule, *lines[1:], rule, *notes]
    )


def as_html(summary: Summary) -> str:
    """The summary as tables of HTML."""
    head, *rows = _rows(summary)
    pairs = [pair for pair in _head(summary) if pair[0]]
    return (
        markup.paragraph(_title(summary), is_bold=True)
        + markup.pairs_table(pairs)
        + markup.table(head, rows)
        + "".join(markup.paragraph(note) for note in summary.notes)
    )


def aligned(rows: list[list[str]]) -> str:
    """Lines with aligned cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_padded(row, widths)).rstrip() for row in rows)


def _title(summary: Summary) -> str:
    return f"Summary of a fit, likelihood: {summary.likelihood}"


def _head(summary: Summary) -> list[tuple[str, str]]:
    """The name-value pairs of the header, in two columns, row by row."""
    pairs = [
        ("Observations", number(summary.observations)),
        ("Log-likelihood", number(summary.log_likelihood)),
        ("Parameters", number(summary.parameters)),
        ("AIC", number(summary.aic)),
        ("Degrees of freedom", number(summary.degrees_of_freedom)),
        ("AICc", number(summary.aicc)),
        ("Covariance", summary.kind),
        ("BIC", number(summary.bic)),
        ("Residual std. error", number(summary.residual_standard_error)),
        ("R-squared", number(summary.r_squared)),
        ("Condition number", number(summary.condition_number)),
        ("Adj. R-squared", number(summary.adjusted_r_squared)),
    ]
    known = [pair for pair in pairs if pair[1] != "nan"]
    return known + [("", "")] * (len(known) % 2)


def _rows(summary: Summary) -> list[list[str]]:
    """The lines of the table of parameters, beginning with the headings."""
    statistic = "t" if summary._estimate.is_t else "z"
    percent = f"{100 * summary.level:g}%"
    found = [
        [
            "",
            "estimate",
            "std. error",
            statistic,
            f"P>|{statistic}|",
            f"low {percent}",
            f"high {percent}",
            "",
        ]
    ]
    low, high = summary.intervals().T
    columns = (
        summary.estimates,
        summary.standard_errors,
        summary.statistics,
        summary.p_values,
        low,
        high,
    )
    for i in _shown(len(summary.names)):
        if i is None:
            found.append(["..."] + [""] * 7)
            continue
        numbers = [number(column[i]) for column in columns]
        numbers[3] = _probability(summary.p_values[i])
        name = summary.names[i]
        if len(name) > _LONGEST_NAME:
            name = "..." + name[3 - _LONGEST_NAME :]
        found.append([name, *numbers, _mark(summary, i)])
    return found


def _shown(count: int) -> list[int | None]:
    """The indices of the parameters to show, and `None` for a gap."""
    if count <= _MOST_ROWS:
        return list(range(count))
    half = _MOST_ROWS // 2
    return [*range(half), None, *range(count - half, count)]


def _mark(summary: Summary, index: int) -> str:
    if summary.is_held[index]:
        return "held"
    return "" if summary.is_identified[index] else "not determined"


def _padded(row: list[str], widths: list[int]) -> list[str]:
    """The cells of a row, right-aligned except for the first."""
    return [
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _spread(pair: tuple[str, str], width: int) -> str:
    """A name and its value, at the two ends of a line."""
    name, value = pair
    if not name:
        return ""
    return f"{name}:" + value.rjust(width - len(name) - 1)


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False)


def number(value: float) -> str:
    """A number with at most six digits."""
    if not np.isfinite(value):
        return str(float(value))
    return f"{value:.6g}"


def _probability(value: float) -> str:
    return "nan" if np.isnan(value) else f"{value:.3f}"
