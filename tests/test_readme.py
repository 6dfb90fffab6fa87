"""The README's code runs and prints what the README shows."""

import contextlib
import io
import pathlib
import re

import keras
import pytest

import kormos

README = pathlib.Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


@pytest.fixture
def restored():
    """Undoes the README's `enable_float64`."""
    with kormos.precision("float64"):
        yield
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", False)


def test_blocks_print_what_is_shown(restored):
    names = {}
    printed = ""
    for kind, block in FENCE.findall(README.read_text(encoding="utf-8")):
        if kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, str(README), "exec"), names)
            printed = output.getvalue()
        else:
            assert printed == block


def test_every_method_is_in_the_table():
    table = README.read_text(encoding="utf-8").split("## Methods")[1]
    names = set(kormos.optimizers.NAMES) - {"scipy"}
    missing = [n for n in names if f"`{n}`" not in table]
    assert not missing
