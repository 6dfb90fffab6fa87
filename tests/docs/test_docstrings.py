"""The examples in the docstrings of the reference run."""

import importlib
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest

import kormos
from conftest import undoing

PAGES = pathlib.Path(__file__).parents[2] / "docs" / "reference"
DIRECTIVE = re.compile(r"auto(?:function|class):: (kormos[\w.]+)")
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def resolved(name):
    """The object that a reference page names by its path."""
    parent, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(parent), attribute)
    except ImportError:
        return getattr(resolved(parent), attribute)


def documented():
    text = "".join(p.read_text("utf-8") for p in sorted(PAGES.glob("*.md")))
    return sorted(set(DIRECTIVE.findall(text)))


def examples():
    """A case for each example of an object, and of its public members."""
    for name in documented():
        found = resolved(name)
        members = vars(found) if inspect.isclass(found) else {}
        public = [m for m in members if not m.startswith("_")]
        for path in (name, *(f"{name}.{member}" for member in public)):
            doc = inspect.getdoc(resolved(path)) or ""
            for number, code in enumerate(EXAMPLE.findall(doc)):
                yield pytest.param(code, id=f"{path}-{number}")


@pytest.fixture
def names():
    """The names that an example may use without defining them."""
    x = np.linspace(-1, 1, 60)[:, None].astype("float32")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(2, "tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer="lbfgs", loss="mse")
    noise = np.random.default_rng(1).normal(0, 0.1, x.shape)
    return {
        "keras": keras,
        "kormos": kormos,
        "np": np,
        "model": model,
        "x": x,
        "y": (np.tanh(2 * x) + noise).astype("float32"),
    }


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("code", list(examples()))
def test_the_example_of_a_docstring_runs(code, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = dict(kormos.optimizers.NAMES)
    monkeypatch.setattr(kormos.optimizers, "NAMES", known)
    # JAX has no float64 within a scope of float32.
    dtype = "float64" if "enable_float64" in code else "float32"
    with undoing(dtype):
        exec(compile(code, "example", "exec"), names)


@pytest.mark.parametrize(
    "name", [n for n in documented() if inspect.isroutine(resolved(n))]
)
def test_every_public_function_has_an_example(name):
    assert EXAMPLE.findall(inspect.getdoc(resolved(name)))
