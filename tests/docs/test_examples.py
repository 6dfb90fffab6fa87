"""The gallery's scripts run, in small sizes, and draw their plots."""

import importlib.util
import pathlib

import matplotlib
import pytest

from conftest import undoing

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
# `test_readme.py`, `make quickstart` and `test_launchers.py` run the others.
OTHERS = "quickstart", "many_processes"
NAMES = sorted(p.stem for p in EXAMPLES.glob("*.py") if p.stem not in OTHERS)


@pytest.fixture
def example(request):
    """The script as a module. Afterwards, the precision is restored."""
    path = EXAMPLES / f"{request.param}.py"
    matplotlib.use("Agg")
    is_float64 = "enable_float64()" in path.read_text(encoding="utf-8")
    with undoing("float64" if is_float64 else "float32"):
        spec = importlib.util.spec_from_file_location(request.param, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("example", NAMES, indirect=True)
def test_it_prints_and_draws(example, tmp_path, capsys):
    example.main(quick=True, out=tmp_path)
    name = example.__name__
    assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    printed = capsys.readouterr().out
    assert f"{name}.png" in printed
    assert "nan" not in printed.split()


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("example", ["collaborative_filtering"], indirect=True)
def test_it_reads_the_files_of_movielens(example, tmp_path, capsys):
    rows = [
        f"{i % 20 + 1},{i % 31 + 7},{i % 10 / 2 + 0.5},0" for i in range(400)
    ]
    header = "userId,movieId,rating,timestamp"
    (tmp_path / "ratings.csv").write_text("\n".join([header, *rows]))
    example.main(quick=True, out=tmp_path, data=tmp_path)
    assert "400 ratings, read" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_says_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert f"python examples/{name}.py" in text
    assert len(text.splitlines()) < 120
