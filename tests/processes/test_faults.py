"""If one of several processes fails, all of them end, and report why."""

import os

import keras
import numpy as np
import pytest

from conftest import BACKEND
from faults import children
from joined import TIMEOUT
from pairs import MARGIN
from pairs import Group
from process_cases import CASES
from process_cases import flat
from process_cases import points
from process_cases import raise_before_the_fit
from process_cases import serve
from process_cases import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BACKEND == "tensorflow", reason="its processes have tests of their own"
    ),
]

KIND = "one of several processes"

# `make test-faults` runs ten. Each starts two new processes.
KILLS = int(os.environ.get("KILLS", 2)) // 2

OTHERS = "1 of 2 processes failed, and report why themselves. This is process "
RAISED = "what the test raises"


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield children.context(monkeypatch, tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def group(context, folder):
    """Two processes, which have run all cases one after the other."""
    with Group(context, serve, (list(CASES), folder), folder) as group:
        # Compiling takes most of the time.
        sent = [dict(group.messages(i, 240)) for i in range(2)]
        assert group.ends(MARGIN) == [0, 0]
        group.reports = sent
        yield group


@pytest.fixture
def reports(group, record_property):
    """A function that returns the reports of the processes for a case."""
    record_property("fault", KIND)

    def of(name):
        pair = [sent[name] for sent in group.reports]
        for report in pair:
            assert np.isfinite(report.after).all()
            after, before = loss(report.after), loss(report.before)
            is_worse = after > before * (1 + 1e-12)
            if is_worse:
                record_property("lost", 1)
            assert not is_worse, f"{after} > {before}"
        return pair

    return of


def loss(theta):
    """The mean square of the network over the rows of all processes."""
    x, y = points()
    kernel, bias = theta[:6].reshape(2, 3), theta[6:9]
    outputs = np.tanh(x @ kernel + bias) @ theta[9:12] + theta[12]
    return np.mean((outputs - y[:, 0]) ** 2)


def assert_same(pair):
    """All processes have the same weights and losses, to the last bit."""
    first, second = pair
    np.testing.assert_array_equal(first.after, second.after)
    assert first.losses == second.losses


def test_a_fit_without_a_fault(reports):
    pair = reports("undisturbed")
    assert_same(pair)
    assert [report.error for report in pair] == [None, None]
    assert pair[0].losses[-1] == pytest.approx(loss(pair[0].after), rel=1e-12)


@pytest.mark.parametrize(
    "name, index, error, message",
    [
        ("raises_in_its_loss", 1, "TypeError", RAISED),
        ("raises_in_its_data", 1, "OSError", RAISED),
        ("raises_at_its_first_batch", 1, "OSError", RAISED),
        ("raises_in_a_callback", 1, "ZeroDivisionError", RAISED),
        ("raises_in_a_callback_of_the_first", 0, "ZeroDivisionError", RAISED),
        ("raises_in_an_earlier_hook", 1, "ZeroDivisionError", RAISED),
        ("raises_when_training_begins", 1, "ZeroDivisionError", RAISED),
        ("raises_when_training_ends", 1, "ZeroDivisionError", RAISED),
        ("raises_while_the_other_computes", 0, "ZeroDivisionError", RAISED),
        ("raises_in_its_residuals", 1, "TypeError", RAISED),
        ("raises_in_a_callback_of_residuals", 1, "ZeroDivisionError", RAISED),
        ("has_a_wrong_argument", 1, "ValueError", "Received: -1"),
        ("has_nan", 1, "ValueError", "the first in row 3"),
        ("has_no_rows", 1, "ValueError", "Received: 0 rows"),
        ("finds_a_full_disk", 0, "OSError", "No space left on device"),
    ],
)
def test_the_failing_process_names_the_cause(
    name, index, error, message, reports
):
    pair = reports(name)
    failed, other = pair[index], pair[1 - index]
    assert failed.error == error
    assert message in failed.message
    assert other.error == "OtherProcessFailed"
    assert f"{OTHERS}{1 - index}." in other.message
    np.testing.assert_array_equal(failed.after, other.after)


def test_a_point_at_which_one_process_raises_is_rejected_by_all(reports):
    pair = reports("raises_in_its_loss_far_away")
    assert_same(pair)
    assert [report.status for report in pair] == ["iteration limit"] * 2


def test_nan_of_one_process_ends_the_fit_of_all(reports):
    pair = reports("has_nan_and_allows_it")
    assert [report.status for report in pair] == ["non-finite"] * 2
    for report in pair:
        np.testing.assert_array_equal(report.after, report.before)


@pytest.mark.parametrize(
    "name",
    [
        "is_interrupted",
        "is_interrupted_twice",
        "is_interrupted_while_it_waits",
        "raises_an_interrupt",
        "raises_an_interrupt_in_an_earlier_hook",
    ],
)
def test_ctrl_c_on_one_process_ends_all_of_them(name, reports):
    pair = reports(name)
    assert_same(pair)
    assert [report.status for report in pair] == ["interrupted"] * 2
    assert len(pair[0].losses) == len(pair[1].losses)
    assert 3 <= len(pair[0].losses) <= 4


def test_a_slow_process_makes_the_fit_slower_and_nothing_else(reports):
    pair = reports("is_slow")
    assert_same([*pair[:1], *reports("undisturbed")[:1]])
    assert_same(pair)
    assert pair[0].seconds > 5


@pytest.mark.parametrize(
    "name", ["is_of_another_version", "has_a_callback_that_changes_weights"]
)
def test_processes_that_drift_apart_are_told_so(name, reports):
    for report in reports(name):
        assert report.error == "LostProcessError"
        assert "with the same versions of all packages" in report.message
        assert (
            "other values on processes [1] than on process 0" in report.message
        )


def test_a_stop_in_a_callback_of_one_process_stops_all(reports):
    pair = reports("stops_in_one_callback")
    assert_same(pair)
    assert [report.status for report in pair] == ["stopped by callback"] * 2
    assert len(pair[0].losses) == 5
    pair = reports("stops_residuals")
    assert [report.status for report in pair] == ["stopped by callback"] * 2
    np.testing.assert_array_equal(pair[0].more["at"], pair[1].more["at"])


def test_early_stopping_restores_the_same_weights_everywhere(reports):
    pair = reports("stops_early")
    assert_same(pair)
    assert pair[0].status == "stopped by callback"
    assert pair[0].more["best"] == np.argmin(pair[0].more["val_loss"])
    assert len(pair[0].losses) == pair[0].more["best"] + 4
    np.testing.assert_array_equal(pair[0].after, pair[0].more["weights"])


def test_the_first_process_alone_writes_files(reports, folder, float64):
    first, second = reports("keeps_checkpoints")
    assert second.more["files"] == []
    numbers = [f"{i}.weights.h5" for i in range(1, 9)]
    assert first.more["files"] == [*numbers, "best.keras", "log.csv"]
    saved = keras.models.load_model(folder / "keeps_checkpoints/0/best.keras")
    np.testing.assert_array_equal(flat(saved), first.after)
    assert len(first.more["rows"]) == 9
    assert "keeps_checkpoints_on_the_first" in CASES
    for report in reports("keeps_checkpoints_on_the_first"):
        assert report.more["is_there"]


def test_a_backup_of_keras_is_restored_on_all(reports):
    pair = reports("keeps_keras_own_backup")
    assert_same(pair)
    assert pair[0].losses == reports("undisturbed")[0].losses[4:]


def test_a_limit_of_time_ends_all_at_the_same_epoch(reports):
    pair = reports("has_a_time_limit")
    assert_same(pair)
    assert [report.status for report in pair] == ["time limit"] * 2
    assert 0.5 < pair[0].seconds < 3


def test_the_first_process_alone_prints(reports, group):
    assert_same(reports("prints"))
    said = [
        group.printed(index).split("--- prints\n")[1].split("---")[0]
        for index in range(2)
    ]
    assert said[0].count("loss:") == 8
    assert said[1].strip() == ""


def test_a_fit_that_resumes_is_one_long_fit(reports):
    pair = reports("goes_on")
    assert_same(pair)
    assert pair[0].losses == reports("undisturbed")[0].losses[4:]


# JAX itself watches processes that have not exchanged anything yet, and ends
# the others if one is lost.
MISSING = {
    "torch": "A process has ended, or has not answered",
    "jax": "tasks are unhealthy (stopped sending heartbeats):\n1\n",
}


def test_a_process_that_never_fits_is_missed(context, tmp_path):
    """The others do not wait longer than the backend's timeout."""
    with Group(context, raise_before_the_fit, (), tmp_path) as group:
        codes = group.ends(TIMEOUT + MARGIN)
        assert None not in codes
        assert f"ZeroDivisionError: {RAISED}" in group.printed(1)
        assert MISSING[BACKEND] in group.printed(0)


def trained(context, folder, backup, kill=None):
    """The messages of two processes in a fit, until one of them is killed.

    Args:
        context: the context of `multiprocessing`.
        folder: the folder in which they meet.
        backup: the folder of the backup.
        kill: the process to kill, and the seconds after its first epoch at
            which to do so.
    """
    with Group(context, train, (backup,), folder) as group:
        if kill is not None:
            index, delay = kill
            assert group.connections[index].poll(MARGIN)
            # It may end before the signal.
            group.connections[index].poll(delay)
            group.processes[index].join(delay)
            group.kill(index)
        limit = TIMEOUT + MARGIN
        sent = [group.messages(i, limit) for i in range(2)]
        group.ends(limit)
        return sent, [group.printed(i) for i in range(2)]


def test_a_killed_process_costs_an_epoch_at_most(
    context, tmp_path, record_property
):
    record_property("fault", "one of several processes, kill -9")
    record_property("tried", KILLS)
    (expected, _), _ = trained(context, tmp_path, tmp_path / "undisturbed")
    *epochs, undisturbed = expected
    assert len(epochs) > 60
    random = np.random.default_rng(0)
    for _ in range(KILLS):
        kill = int(random.integers(2)), random.uniform(0, 0.2)
        sent, printed = trained(context, tmp_path, tmp_path / "backup", kill)
        survivor = 1 - kill[0]
        assert "A process has ended, or has not answered" in printed[survivor]
    sent, _ = trained(context, tmp_path, tmp_path / "backup")
    first, second = sent[0][-1], sent[1][-1]
    assert_same([first, second])
    np.testing.assert_array_equal(first.after, undisturbed.after)
    assert first.losses == undisturbed.losses[-len(first.losses) :]
    assert len(first.losses) < len(undisturbed.losses)
