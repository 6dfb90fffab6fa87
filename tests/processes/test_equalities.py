"""Two processes, each with its own rows, find the numbers of one process."""

import os
import pathlib

import numpy as np
import pytest

from conftest import BACKEND
from joined import ended
from joined import start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BACKEND == "tensorflow", reason="test_tensorflow.py has its own"
    ),
]
SCRIPT = pathlib.Path(__file__).parent / "figures.py"
# Sums of other parts of the data are rounded otherwise.
ROUNDING = 1e-13
# The cases of `figures.py`.
NAMES = ["weights", "two outputs"]
METHODS = ["lbfgs", "l-bfgs-b", "trust-ncg"]
if BACKEND == "torch":
    NAMES += ["sum", "mean with weights", "masks"]
    METHODS += ["ssbroyden", "newton"]


def figures_of(count, folder, *part, **environment):
    """The figures of each of `count` processes."""
    children = start(SCRIPT, count, folder, *part, **environment)
    for status, output in ended(children):
        assert status == 0, output
    return [dict(np.load(folder / f"figures-{i}.npz")) for i in range(count)]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """The figures of one process, and of each of two."""
    folders = [tmp_path_factory.mktemp(f"of-{n}") for n in (1, 2)]
    (one,), both = (
        figures_of(count, folder)
        for count, folder in zip((1, 2), folders, strict=True)
    )
    return [one, *both]


def of(figures, kind):
    """Pairs of the figures of one process and of two, by name."""
    one, first, _ = figures
    return {k: (one[k], first[k]) for k in one if k.startswith(kind)}


def test_both_processes_have_the_same_bits(figures):
    _, first, second = figures
    assert first.keys() == second.keys()
    different = [k for k in first if not np.array_equal(first[k], second[k])]
    assert different == []


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_derivatives_are_those_of_one_process(figures, name):
    for what, (one, two) in of(figures, name + ",").items():
        size = np.max(np.abs(one))
        np.testing.assert_allclose(
            two, one, rtol=0, atol=ROUNDING * size, err_msg=what
        )


def test_fits_end_at_the_same_optimum(figures):
    pairs = of(figures, "fit ")
    assert len(pairs) >= 5 * len(METHODS) + 2 * 2
    for what, (one, two) in pairs.items():
        np.testing.assert_allclose(two, one, rtol=1e-7, err_msg=what)


@pytest.mark.parametrize("method", METHODS)
def test_fits_take_the_same_evaluations(figures, method):
    """There are four iterations, because rounding decides at an optimum."""
    (pair,) = of(figures, f"count {method} {{}}").values()
    assert pair[0] == pair[1]


@pytest.mark.skipif(BACKEND != "jax", reason="JAX may have several a process")
def test_processes_of_two_devices_each_find_the_same(figures, tmp_path):
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"--xla_force_host_platform_device_count=2 {flags}"
    both = figures_of(2, tmp_path, "part", XLA_FLAGS=flags)
    one, first = figures[0], both[0]
    different = [k for k in first if not np.array_equal(first[k], both[1][k])]
    assert different == []
    for name, value in first.items():
        is_exact = name.startswith("weights,")
        size = np.max(np.abs(one[name]))
        atol = (ROUNDING if is_exact else 1e-7) * size
        np.testing.assert_allclose(
            value, one[name], rtol=0, atol=atol, err_msg=name
        )
