"""Types: those of the wheel, and a check that mypy reads all functions."""

import importlib.util
import os
import pathlib
import site
import subprocess
import sys
import venv
import zipfile

import pytest

from conftest import BACKEND

pytest.importorskip("mypy")
ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BACKEND != "jax", reason="Types know no backend."),
]

SCRIPT = """
import keras
import numpy as np
import kormos

v = keras.Variable([1.0])
result = kormos.minimize(lambda: keras.ops.sum(v**2), [v], max_evals=100)
reveal_type(result.success)
kormos.minimize(lambda: keras.ops.sum(v**2), [v], max_evals="many")
kormos.solve(3, np.zeros(3))
kormos.fit(keras.Model(), precision=64)
kormos.fit()
reveal_type(kormos.only_here)
"""


def run(*command, cwd):
    # These variables would lead to the sources.
    hidden = ("MYPYPATH", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the wheel, built from the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT]
    if importlib.util.find_spec("hatchling"):
        command.append("--no-build-isolation")
    built = run(*command, cwd=folder)
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("The wheel's build backend, hatchling, is not available.")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("kormos-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder of packages with the wheel, and the Python that reads it."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # The packages that kormos requires are those of the tests. An editable
    # kormos among them is not found: files of paths in there are not read.
    others = "\n".join(site.getsitepackages())
    (packages / "others.pth").write_text(others)
    return packages, python


def test_the_wheel_says_that_it_is_typed(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "kormos/py.typed" in names
    # And holds nothing but the package.
    assert {n.split("/")[0].split("-")[0] for n in names} == {"kormos"}


def test_a_users_script_is_checked_against_the_wheel(installed, tmp_path):
    packages, python = installed
    # Only the installed package has this name, so it is the one that is read.
    with (packages / "kormos" / "__init__.py").open("a") as file:
        file.write("only_here: complex = 1j\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    options = ("--ignore-missing-imports", "--python-executable", python)
    found = run("mypy", *options, "script.py", cwd=tmp_path).stdout
    assert 'Revealed type is "complex"' in found or "builtins.complex" in found
    assert 'Revealed type is "bool"' in found or "builtins.bool" in found
    assert 'Argument "max_evals"' in found and '"str"' in found
    assert 'Argument 1 to "solve"' in found
    # Keras has no types, so that any object passes for a model.
    assert 'Argument "precision" to "fit"' in found
    assert 'Missing positional argument "model" in call to "fit"' in found
    assert found.count("error:") == 4, found


@pytest.mark.parametrize(
    "code, error",
    [
        ('def f() -> int:\n    return 1 + "a"\n', "[operator]"),
        ("def f(x):\n    return x\n", "[no-untyped-def]"),
    ],
)
def test_a_wrong_body_and_a_missing_type_are_refused(code, error, tmp_path):
    (tmp_path / "wrong.py").write_text(code)
    config = ("--config-file", ROOT / "pyproject.toml")
    found = run("mypy", *config, "wrong.py", cwd=tmp_path)
    assert found.returncode == 1 and error in found.stdout
