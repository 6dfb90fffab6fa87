"""JAX with several devices in one process gives the numbers of one device."""

import contextlib
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import BACKEND
from four_devices import CASES
from four_devices import METHODS
from four_devices import ROWS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BACKEND != "jax", reason="Keras spreads arrays on JAX only"
    ),
]

CHILD = pathlib.Path(__file__).parent.parent / "helpers" / "four_devices.py"
WHOLE = [
    "weights",
    "sum",
    "mean with weights",
    "several outputs",
    "fewer rows than devices",
    "rows that divide",
    "many chunks that divide",
    "many chunks and some rows",
]


@pytest.fixture(scope="session")
def found(tmp_path_factory):
    """The results of one process, which all workers of pytest share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "four_devices.pickle"
    with contextlib.suppress(FileExistsError):
        (folder / "four_devices").mkdir()
        compute(path)
    until = time.monotonic() + 300
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    return pickle.loads(path.read_bytes())


def compute(path):
    count = "--xla_force_host_platform_device_count=4"
    env = {
        **os.environ,
        "XLA_FLAGS": f"{count} {os.environ.get('XLA_FLAGS', '')}",
    }
    command = [sys.executable, CHILD, path.with_suffix(".part")]
    try:
        subprocess.run(command, env=env, check=True, timeout=280)
    finally:
        # Other workers wait for the file, whatever it holds.
        path.with_suffix(".part").touch()
        path.with_suffix(".part").rename(path)


def assert_same(one, four, rtol):
    assert one.keys() == four.keys()
    for name, expected in one.items():
        size = np.max(np.abs(expected))
        np.testing.assert_allclose(
            four[name], expected, rtol=0, atol=rtol * size, err_msg=name
        )


@pytest.mark.parametrize("case", [*CASES, "a model that is split"])
def test_all_derivatives_are_those_of_one_device(found, case):
    (one, _), (four, _) = found[case]
    assert_same(one, four, 1e-14)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c != "streamed"] + ["a model that is split"]
)
def test_every_array_of_rows_is_in_parts_on_four_devices(found, case):
    _, (_, layout) = found[case]
    assert set(layout["devices"]) == {4}
    assert not any(layout["copied"])


def test_no_device_holds_more_than_its_share_of_the_rows(found):
    _, (_, layout) = found["weights"]
    assert layout["most rows"] == -(-ROWS // 4)


@pytest.mark.parametrize("case", WHOLE)
def test_an_evaluation_exchanges_one_sum_and_nothing_else(found, case):
    _, (_, layout) = found[case]
    assert layout["exchanges"] == ["all-reduce"]


def test_batches_that_were_asked_for_exchange_a_sum_each(found):
    _, (_, layout) = found["weights, in chunks of 10"]
    assert layout["exchanges"] == ["all-reduce", "all-reduce"]


# The first step of these comes from a probe of the curvature by differences,
# which amplifies rounding: on one device, another order of the rows changes the
# losses of such a fit by 3e-10 of themselves.
TOLERANCES = {"lbfgs": 1e-8, "ssbroyden": 1e-8}


@pytest.mark.parametrize("method", [*METHODS, "least squares", "minimize"])
def test_a_fit_takes_the_same_evaluations_to_the_same_loss(found, method):
    one, four = found[method]
    assert_same(one, four, TOLERANCES.get(method, 1e-13))
    assert four["evaluations"] == one["evaluations"]


def test_a_loop_is_compiled_once_for_several_devices(found):
    assert found["compilations"] == 1


def test_a_fit_keeps_the_layout_of_a_model_that_is_split(found):
    one, four = found["a fit of a model that is split"]
    assert (one.pop("kernel"), four.pop("kernel")) == ([(3, 4)], [(3, 2)])
    assert_same(one, four, 1e-8)


def test_pairs_of_lbfgs_that_are_spread_take_the_same_iterates(found):
    usual, spread = found["memory"]
    names = ("loss", "mae", "evaluations")
    assert_same(usual, {name: spread[name] for name in names}, 1e-8)


def test_each_device_holds_a_part_of_every_pair(found):
    _, spread = found["memory"]
    # Of 21 parameters, with zeros at the end.
    assert spread["parts"] == [{6}, {6}]
    assert not any(spread["copied"])


@pytest.mark.parametrize("how", ["", " from a file", " on one device"])
def test_a_fit_with_spread_pairs_is_resumed(found, how):
    usual, spread = found["memory"]
    np.testing.assert_allclose(
        spread[f"resumed{how}"], spread["resumed"], rtol=1e-8
    )
    assert spread["resumed"][-1] < usual["loss"][-1]
    assert spread["setting"] is True
