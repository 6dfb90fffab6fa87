"""The code of the README and of the docs prints what they show."""

import contextlib
import io
import pathlib
import re

import pytest

import kormos
from conftest import undoing

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("index", "choosing", "evidence", "faq")
]
FENCE = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


def run_blocks(path):
    """Runs the Python of a page: what it printed, and what the page shows."""
    names = {"__name__": path.stem}
    latest, printed, shown = "", [], []
    for kind, block in FENCE.findall(path.read_text(encoding="utf-8")):
        if kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, str(path), "exec"), names)
            latest = output.getvalue()
        else:
            printed.append(latest)
            shown.append(block)
    return printed, shown


def test_the_readme_prints_what_it_shows():
    with undoing("float64"):
        printed, shown = run_blocks(README)
    assert printed == shown


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_docs_print_what_they_show(path):
    printed, shown = run_blocks(path)
    assert printed == shown


def test_the_page_of_statistics_prints_what_it_shows():
    with undoing("float64"):
        printed, shown = run_blocks(ROOT / "docs" / "statistics.md")
    assert printed == shown


def test_every_method_is_in_the_table():
    table = README.read_text(encoding="utf-8").split("## Methods")[1]
    names = set(kormos.optimizers.NAMES) - {"scipy"}
    missing = [n for n in names if f"`{n}`" not in table]
    assert not missing
