"""Fits in the scope of a strategy of TensorFlow find the same numbers."""

import json
import signal

import numpy as np
import pytest

from conftest import BACKEND
from joined import ended
from strategies import FITS
from strategies import ROWS
from strategies import start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BACKEND != "tensorflow", reason="no other engine has strategies"
    ),
]
# Sums of other parts of the data are rounded otherwise, by a few units.
ROUNDING = 4e-15
# After ten iterations.
GROWN = 1e-9


def found_by(kind, folder):
    """The figures of all processes of a kind."""
    folder.mkdir()
    children = start("figures", kind, folder)
    for status, output in ended(children):
        assert status == 0, output
    # Only the first process saves the model.
    assert [p.name for p in folder.glob("*.keras")] == ["0.keras"]
    return [dict(np.load(folder / f"{i}.npz")) for i in range(len(children))]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """The figures of each kind of processes."""
    folder = tmp_path_factory.mktemp("figures")
    return {
        kind: found_by(kind, folder / kind)
        for kind in ("one", "mirrored", "worker")
    }


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The errors of both processes for each fault of the second."""
    folder = tmp_path_factory.mktemp("faults")
    (first, output), (second, _) = ended(start("faults", "worker", folder))
    assert first == 0, output
    assert second == -signal.SIGKILL
    return [json.loads((folder / f"{i}.json").read_text()) for i in (0, 1)]


def of(figures, kind, what):
    """Triples of a name, the figure of one process, and that of the kind."""
    (one,), (other, *_) = figures["one"], figures[kind]
    return [(k, one[k], other[k]) for k in one if k.startswith(what)]


def test_two_workers_have_the_same_bits(figures):
    first, second = figures["worker"]
    assert first.keys() == second.keys()
    different = [k for k in first if not np.array_equal(first[k], second[k])]
    assert different == []


@pytest.mark.parametrize("kind", ["mirrored", "worker"])
def test_losses_and_derivatives_are_those_of_one_process(figures, kind):
    found = of(figures, kind, "figure")
    assert len(found) == 13
    assert figures[kind][0]["figure: rows"] == ROWS
    for name, one, other in found:
        size = np.max(np.abs(one))
        np.testing.assert_allclose(
            other, one, rtol=0, atol=ROUNDING * size, err_msg=name
        )


@pytest.mark.parametrize("kind", ["mirrored", "worker"])
def test_fits_take_the_same_iterates(figures, kind):
    found = of(figures, kind, "fit ")
    assert len(found) == 4 * (len(FITS) + 1) + 3
    for name, one, other in found:
        np.testing.assert_allclose(other, one, rtol=GROWN, err_msg=name)


@pytest.mark.parametrize("kind", ["mirrored", "worker"])
def test_fits_evaluate_as_often(figures, kind):
    found = [f for f in of(figures, kind, "bits ") if "evaluations" in f[0]]
    assert len(found) == len(FITS) + 1
    assert [n for n, one, other in found if one != other] == []


def test_both_devices_of_a_mirrored_strategy_compute(figures):
    (found,) = figures["mirrored"]
    # There are 63 rows, because chunks are not divided.
    assert found["placed: rows"].tolist() == [32, 31]
    for name in ("value", "value_and_grad", "hvp", "evaluate"):
        one, two = found[f"placed: {name}"]
        assert one == two > 0, name


@pytest.mark.parametrize(
    "case", ["weights", "mask", "outputs", "batches", "stream", "one row"]
)
def test_devices_of_a_mirrored_strategy_add_up_to_one(figures, case):
    found = of(figures, "mirrored", f"{case}: ")
    assert len(found) == 6
    for name, one, other in found:
        size = np.max(np.abs(one))
        np.testing.assert_allclose(
            other, one, rtol=0, atol=ROUNDING * size, err_msg=name
        )


def test_a_loss_reads_tables_and_variables_of_the_first_device(figures):
    found = of(figures, "mirrored", "outside: ")
    assert len(found) == 1
    for _, one, other in found:
        np.testing.assert_allclose(other, one, rtol=ROUNDING)


def test_an_exception_in_the_loss_of_one_worker_ends_both(told):
    first, second = told
    assert first["loss"][0] == "OtherProcessFailed"
    assert second["loss"][0] == "TypeError"
    assert "a mistake of mine" in second["loss"][1]


def test_a_mistake_in_python_code_within_the_graph_ends_both(told):
    first, second = told
    assert first["mistake"][0] == "OtherProcessFailed"
    assert "TypeError: a mistake of mine" in second["mistake"][1]


def test_a_worker_says_itself_why_all_reject_a_point(told):
    first, second = told
    assert [t["refused"][0] for t in told] == ["none", "none"]
    assert first["refused"][2] == []
    (said,) = second["refused"][2]
    assert "raised ValueError on this one: ValueError: no such place" in said


def test_an_exception_in_the_data_of_one_worker_ends_both(told):
    first, second = told
    assert first["data"][0] == "OtherProcessFailed"
    assert second["data"] == ["OSError", "the disk is gone"]


def test_workers_fit_again_after_an_exception(told):
    assert [t["none"][0] for t in told] == ["none", "none"]


def test_a_killed_worker_ends_the_other(told):
    first, second = told
    kind, message = first["kill"]
    assert kind == "LostProcessError"
    assert "task:1" in message
    assert "kill" not in second


def test_a_worker_that_does_not_answer_ends_both(tmp_path):
    for status, output in ended(start("silence", "worker", tmp_path)):
        assert status == 0, output
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)]
    assert [f["silence"][0] for f in found] == ["LostProcessError"] * 2
    assert "within 3 seconds" in found[0]["silence"][1]
