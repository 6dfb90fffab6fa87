"""Records what a benchmark finds: printed as Markdown, kept as JSON.

Every benchmark here is a script with the arguments of `parser` that records
tables and curves. `report.py` makes the page and its plots from them.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics

PACKAGES = (
    "kormos",
    "keras",
    "jax",
    "tensorflow",
    "torch",
    "numpy",
    "scipy",
    "tensorflow-probability",
    "optax",
    "jaxopt",
    "optimistix",
)


def parser(about):
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one seed"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, help="a file to keep the record in, JSON"
    )
    return parser


class Record:
    """Tables and curves of one benchmark.

    Args:
        name: the benchmark's name.
        about: what it measures, how, and what it compares with, in Markdown.
        args: the arguments, as `parser` reads them.
    """

    def __init__(self, name, about, args):
        self._path = args.out
        self._content = {
            "name": name,
            "about": about,
            "quick": args.quick,
            "date": datetime.date.today().isoformat(),
            "machine": _machine(),
            "versions": _versions(),
            "tables": [],
            "curves": [],
        }

    def table(self, title, columns, rows, note=""):
        """Prints and keeps a table.

        Args:
            title: its title.
            columns: list of strings.
            rows: list of lists of strings and numbers.
            note: a sentence below it.
        """
        rows = [[_cell(value) for value in row] for row in rows]
        self._content["tables"].append(
            {"title": title, "columns": columns, "rows": rows, "note": note}
        )
        print(f"\n{markdown(self._content['tables'][-1])}", flush=True)
        self._save()

    def curves(self, title, x, y, series, note="", **options):
        """Keeps curves that share axes.

        Args:
            title: the title.
            x, y: labels of the axes, with units.
            series: dict from a name to a pair of lists, x and y.
            note: a sentence below the plot.
            **options: options of `report.py`'s plot: `xscale` and `yscale`,
                "log" unless "linear", `xlim` and `drawstyle`.
        """
        series = {
            name: [[float(v) for v in values] for values in pair]
            for name, pair in series.items()
        }
        self._content["curves"].append(
            {
                "title": title,
                "x": x,
                "y": y,
                "series": series,
                "note": note,
                "options": options,
            }
        )
        self._save()

    def _save(self):
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._content, indent=1)
            self._path.write_text(text + "\n")


def markdown(table):
    """A table of `Record.table` in Markdown."""
    lines = [
        f"### {table['title']}",
        "",
        f"| {' | '.join(table['columns'])} |",
        "|---" * len(table["columns"]) + "|",
        *(f"| {' | '.join(row)} |" for row in table["rows"]),
    ]
    if table["note"]:
        lines += ["", table["note"]]
    return "\n".join(lines)


def spread(values):
    """The spread of values, as a part of their median; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    return (max(values) - min(values)) / statistics.median(values)


def _cell(value):
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value != value or value in (float("inf"), float("-inf")):
        return "–"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        return f"{value:.1e}"
    return f"{value:.3g}"


def _machine():
    model = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line for line in lines if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return (
        f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"
    )


def _versions():
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
