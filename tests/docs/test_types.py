"""Types: those that users see, and that mypy reads the bodies of functions."""

import os
import pathlib
import subprocess
import sys

import pytest

import kormos
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
"""


def mypy(*args, cwd):
    env = {k: v for k, v in os.environ.items() if k != "MYPYPATH"}
    command = [sys.executable, "-m", "mypy", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


def test_a_users_script_is_checked(tmp_path):
    assert (pathlib.Path(kormos.__file__).parent / "py.typed").exists()
    (tmp_path / "script.py").write_text(SCRIPT)
    found = mypy("--ignore-missing-imports", "script.py", cwd=tmp_path).stdout
    assert 'Revealed type is "bool"' in found or "builtins.bool" in found
    assert 'Argument "max_evals"' in found and '"str"' in found
    assert 'Argument 1 to "solve"' in found
    assert found.count("error:") == 2, found


@pytest.mark.parametrize(
    "code, error",
    [
        ('def f() -> int:\n    return 1 + "a"\n', "[operator]"),
        ("def f(x):\n    return x\n", "[no-untyped-def]"),
    ],
)
def test_a_wrong_body_and_a_missing_type_are_refused(code, error, tmp_path):
    (tmp_path / "wrong.py").write_text(code)
    found = mypy(
        "--config-file", ROOT / "pyproject.toml", "wrong.py", cwd=tmp_path
    )
    assert found.returncode == 1 and error in found.stdout
