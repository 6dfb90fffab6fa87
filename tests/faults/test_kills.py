"""`kill -9` at any moment costs at most one iteration, with a backup."""

import os
import time

import numpy as np
import pytest

from conftest import BACKEND
from faults import children

KIND = "kill -9"

# Each process compiles again on JAX and TensorFlow, so all cases run only by
# `make test-faults`.
KILLS = int(os.environ.get("KILLS", 20 if BACKEND == "torch" else 8))


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield children.context(monkeypatch, tmp_path_factory.mktemp("xla"))


def lived(connection):
    """The epochs that a process has reported, and its report or `None`."""
    epochs = []
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return epochs, None
        if not isinstance(message, int):
            return epochs, message
        epochs.append(message)


@pytest.fixture(scope="module")
def undisturbed(context, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "backup"
    process, connection = children.start(
        context, children.fit_with_backup, folder
    )
    _, (losses, weights) = lived(connection)
    process.join()
    # Enough for all kills, with two epochs between them.
    assert len(losses) > 60
    return losses, weights


def test_at_random_moments(undisturbed, context, fault, tmp_path):
    fault.record("tried", KILLS)
    expected, weights = undisturbed
    arguments = children.fit_with_backup, tmp_path / "backup"
    delays = np.random.default_rng(0).uniform(0, 0.02, KILLS)
    end = -1
    for delay in delays:
        process, connection = children.start(context, *arguments)
        # If they were later, the fit might end before the last kill.
        connection.poll(60)
        time.sleep(delay)
        process.kill()
        process.join()
        epochs, report = lived(connection)
        assert report is None
        assert epochs[0] in (end, end + 1), "a restart lost iterations"
        end = epochs[-1] + 1
    process, connection = children.start(context, *arguments)
    epochs, (losses, ended_at) = lived(connection)
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(losses, expected[-len(losses) :])
    np.testing.assert_array_equal(ended_at, weights)


def test_a_chain_at_random_moments_of_each_stage(context, fault, tmp_path):
    kills = max(3, KILLS // (1 if BACKEND == "torch" else 2))
    fault.record("tried", kills)
    target = children.fit_chain_with_backup
    process, connection = children.start(context, target, tmp_path / "one")
    _, (expected, weights) = lived(connection)
    process.join()
    rng = np.random.default_rng(1)
    # The kill comes ten epochs before the end, so that the stage is not over.
    epochs_of_each = children.CHAIN_EPOCHS
    stage = np.arange(kills) * 3 // kills
    moments = np.sort(
        stage * epochs_of_each + rng.integers(1, epochs_of_each - 10, kills)
    )
    end, stages = -1, set()
    for moment in moments:
        process, connection = children.start(
            context, target, tmp_path / "backup"
        )
        told = [connection.recv()]
        assert told[0] in (end, end + 1), "a restart lost iterations"
        while told[-1] < moment:
            told.append(connection.recv())
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join()
        epochs, report = lived(connection)
        assert report is None
        end = [*told, *epochs][-1] + 1
        stages.add(end // epochs_of_each)
    process, connection = children.start(context, target, tmp_path / "backup")
    _, (losses, ended_at) = lived(connection)
    process.join()
    assert stages == {0, 1, 2}
    np.testing.assert_array_equal(losses, expected[-len(losses) :])
    np.testing.assert_array_equal(ended_at, weights)


@pytest.mark.parametrize("place", ["open", "complete", "named"])
def test_while_a_backup_is_written(
    place, undisturbed, context, fault, tmp_path
):
    arguments = children.fit_with_backup, tmp_path / "backup"
    process, connection = children.start(context, *arguments, place)
    epochs, report = lived(connection)
    told = len(epochs)
    assert (epochs, report) == (list(range(told)), None)
    process, connection = children.start(context, *arguments)
    epochs, report = lived(connection)
    process.join()
    assert report is not None, "the fit did not continue"
    assert epochs[0] in (told, told + 1)
    np.testing.assert_array_equal(report[1], undisturbed[1])
