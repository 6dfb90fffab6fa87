"""The code of the README and of the docs prints what they show."""

import contextlib
import importlib.util
import io
import pathlib
import re
import warnings

import pytest

import kormos
from conftest import BACKEND
from conftest import undoing
from kormos.solvers import statuses

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("index", "choosing", "evidence", "faq")
]
# One backend that compiles and one that does not are enough for these.
PAGES_OF_USE = [
    ROOT / "docs" / f"{name}.md"
    for name in (
        "chains",
        "why_did_it_stop",
        "saving",
        "tutorial",
        "likelihood",
        "residuals",
        "coming_from",
    )
]
FENCE = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


def run_blocks(path):
    """Runs the Python of a page; returns its output, and that on the page."""
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


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "tensorflow", reason="JAX compiles, too.")
@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("path", PAGES_OF_USE, ids=lambda path: path.stem)
def test_the_pages_of_use_print_what_they_show(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with undoing("float64"), warnings.catch_warnings():
        printed, shown = run_blocks(path)
    assert printed == shown


def test_the_notebook_has_the_code_and_the_prints_of_the_tutorial():
    spec = importlib.util.spec_from_file_location(
        "notebook", ROOT / "docs/_ext/notebook.py"
    )
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    page = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    cells = notebook.convert(page)["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    blocks = FENCE.findall(page)
    sources = ["".join(c["source"]) + "\n" for c in code]
    assert sources == [block for kind, block in blocks if kind == "python"]
    shown = ["".join(o["text"]) + "\n" for c in code for o in c["outputs"]]
    assert shown == [block for kind, block in blocks if kind == "text"]
    prose = "".join("".join(c["source"]) for c in cells if c not in code)
    assert ".md)" not in prose and "![" not in prose


def test_every_check_that_a_page_names_exists():
    page = (ROOT / "docs/works_with.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 30
    missing = [
        (path, name)
        for path, name in named
        if not (ROOT / path).exists()
        or f"def {name}" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_the_page_of_statistics_prints_what_it_shows():
    with undoing("float64"):
        printed, shown = run_blocks(ROOT / "docs" / "statistics.md")
    assert printed == shown


def test_every_method_is_in_the_table():
    page = (ROOT / "docs/choosing.md").read_text(encoding="utf-8")
    table = page.split("## Methods")[1]
    names = set(kormos.optimizers.NAMES) - {"scipy"}
    missing = [n for n in names if f"`{n}`" not in table]
    assert not missing


def test_every_status_is_explained():
    page = (ROOT / "docs/why_did_it_stop.md").read_text(encoding="utf-8")
    headings = "".join(re.findall(r"^## (.*)$", page, re.M))
    words = [
        value
        for name, value in vars(statuses).items()
        if name.isupper() and isinstance(value, str)
    ]
    assert len(words) > 10
    assert [w for w in words if f"`{w}`" not in headings] == []


def test_every_public_name_is_in_the_reference():
    pages = (ROOT / "docs/reference").glob("*.md")
    text = "".join(p.read_text(encoding="utf-8") for p in pages)
    namespaces = ("__version__", "callbacks", "models", "optimizers")
    public = {f"kormos.{n}" for n in kormos.__all__ if n not in namespaces}
    public |= {f"kormos.callbacks.{n}" for n in kormos.callbacks.__all__}
    public |= {
        f"kormos.optimizers.{make.__name__}"
        for make in kormos.optimizers.NAMES.values()
        if isinstance(make, type)
    }
    documented = re.findall(r"auto(?:function|class):: (kormos[\w.]+)", text)
    assert public - set(documented) == set()


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").split()) < 900
