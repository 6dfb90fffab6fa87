"""States to continue from are kept bit for bit, or refused if they do not fit.

The state is that of a method at the minimum of `(a - 1/3)**2 + (b - 2/3)**2`.
"""

import warnings
from typing import Any
from typing import NamedTuple

import numpy as np
import pytest
from keras import ops

from kormos import backend
from kormos.solvers.solver_state import SolverState
from kormos.solvers.solver_state import load

FLOAT32 = 2.0**-23
THETA = np.array([1 / 3, 2 / 3])
# The point, rounded by float32 variables.
HELD = THETA.astype("float32").astype("float64")


class Search(NamedTuple):
    step: Any
    upper: Any


class State(NamedTuple):
    theta: Any
    loss: Any
    grad: Any
    pairs: Any
    search: Search
    status: Any
    evaluations: Any
    latest: Any
    rows: Any


def a_state(**fields):
    """A state in which no number is exact in float32."""
    state = State(
        theta=THETA,
        loss=np.float64(1 / 7),
        grad=np.array([1e-17, -1 / 9]),
        pairs=np.int32(3),
        search=Search(np.float64(0.1), np.float64(np.inf)),
        status=np.int32(4),
        evaluations=np.int32(17),
        latest=np.float64(0.5),
        rows=np.ones((2, 5)),
    )
    return state._replace(**fields)


# This is a run's state before its first evaluation.
EMPTY = State(
    theta=np.zeros(2),
    loss=np.float64(np.nan),
    grad=np.zeros(2),
    pairs=np.int32(0),
    search=Search(np.float64(0.0), np.float64(0.0)),
    status=np.int32(0),
    evaluations=np.int32(0),
    latest=np.float64(0.0),
    rows=np.zeros((8, 5)),
)


def written(solver_state):
    """The state, after writing it to a file and reading it."""
    store = {"learning_rate": np.float32(1.0)}
    solver_state.save(store)
    loaded, others = load(store)
    assert list(others) == ["learning_rate"]
    return loaded


def same(solver_state):
    return solver_state


def restored(solver_state, theta=THETA, key="lbfgs"):
    return solver_state.restored(key, EMPTY, theta, FLOAT32)


@pytest.mark.parametrize("way", [same, written])
@pytest.mark.parametrize("is_tensor", [False, True])
def test_a_state_is_kept_to_the_bit(way, is_tensor):
    state = a_state()
    if is_tensor:
        with backend.float64():
            state = state._replace(
                theta=ops.convert_to_tensor(THETA, "float64"),
                grad=ops.convert_to_tensor(state.grad, "float64"),
            )
    found = restored(way(SolverState("lbfgs", state)))
    expected = a_state()
    for name in ("theta", "loss", "grad", "pairs", "search"):
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name), strict=True
        )
    # Decisions are made on NumPy scalars.
    for number in (found.loss, found.pairs, *found.search):
        assert isinstance(number, np.generic)


def test_what_a_run_starts_afresh_is_not_kept():
    kept = SolverState("lbfgs", a_state())
    assert set(kept.arrays()) == {
        "theta",
        "loss",
        "grad",
        "pairs",
        "search.step",
        "search.upper",
    }
    found = restored(kept)
    for name in ("status", "evaluations", "latest"):
        assert getattr(found, name) == getattr(EMPTY, name)
    assert found.rows is EMPTY.rows


def test_a_store_without_a_state():
    store = {"learning_rate": np.float32(0.5), "solver_theta": THETA}
    found, others = load(store)
    assert found is None
    assert others == {"learning_rate": np.float32(0.5)}


@pytest.mark.parametrize("way", [same, written])
def test_notes_are_kept_and_disturb_nothing(way):
    kept = SolverState("lm", a_state())
    kept.note(damping=np.float64(1 / 3))
    kept = way(kept)
    assert kept.arrays()["damping"] == 1 / 3
    assert restored(kept, key="lm").pairs == 3


@pytest.mark.parametrize("way", [same, written])
def test_variables_that_round_the_point(way):
    assert not np.array_equal(HELD, THETA)
    kept = way(SolverState("lbfgs", a_state()))
    found = restored(kept, HELD)
    # The solver continues from its own point, which is more precise.
    np.testing.assert_array_equal(found.theta, THETA)
    assert found.loss == 1 / 7
    np.testing.assert_array_equal(kept.point(HELD, FLOAT32), THETA)


def test_variables_that_were_changed():
    kept = SolverState("lbfgs", a_state())
    changed = HELD + np.array([0.0, 1e-6])
    found = restored(kept, changed)
    np.testing.assert_array_equal(found.theta, changed)
    # The loss there is not known, but the curvature is kept.
    assert np.isnan(found.loss) and found.pairs == 3
    np.testing.assert_array_equal(kept.point(changed, FLOAT32), changed)
    # One spacing of numbers is a change where nothing rounds.
    beside = np.nextafter(THETA, 1)
    np.testing.assert_array_equal(kept.point(beside, 0.0), beside)


@pytest.mark.parametrize("way", [same, written])
def test_a_point_in_the_variables_that_is_not_the_solvers(way):
    # The best point was left in the variables, and not the last.
    left = np.array([1 / 3, 0.6])
    kept = way(SolverState("lbfgs", a_state(), left))
    np.testing.assert_array_equal(restored(kept, left).theta, THETA)
    np.testing.assert_array_equal(restored(kept, THETA).theta, THETA)
    assert np.isnan(restored(kept, THETA).loss)
    assert restored(kept, left).loss == 1 / 7


def test_a_loss_that_has_become_another_one():
    kept = SolverState("lbfgs", a_state())
    kept.forget_loss()
    found = restored(kept)
    assert np.isnan(found.loss) and found.pairs == 3
    np.testing.assert_array_equal(found.theta, THETA)


def test_a_state_that_is_lost():
    kept = SolverState("lbfgs", a_state())
    assert not kept.is_lost
    kept.lose()
    assert kept.is_lost


@pytest.mark.parametrize(
    "key, theta, words",
    [
        ("lm", THETA, "'lbfgs' with 2 parameters.*Received: 'lm' with 2"),
        ("lbfgs", np.zeros(3), "'lbfgs' with 2 parameters.*with 3 parameters"),
    ],
)
def test_states_of_other_methods_and_models_are_refused(key, theta, words):
    with pytest.raises(ValueError, match=words):
        restored(SolverState("lbfgs", a_state()), theta, key)


@pytest.mark.parametrize("name", ["grad", "search.step"])
@pytest.mark.parametrize("array", [None, np.zeros(3)])
def test_a_damaged_file_is_refused(name, array):
    store = {}
    SolverState("lbfgs", a_state()).save(store)
    del store["solver_" + name]
    if array is not None:
        store["solver_" + name] = array
    shape = r"\(3,\)" if array is not None else "None"
    with pytest.raises(ValueError, match=f"damaged.*'{name}' of shape {shape}"):
        restored(load(store)[0])


@pytest.mark.parametrize("way", [same, written])
@pytest.mark.parametrize(
    "fields",
    [
        {"search": Search(np.float64(np.nan), np.float64(1.0))},
        {"loss": np.float64(np.inf)},
        {"loss": np.float64(np.nan)},
        {"grad": np.array([0.0, np.inf])},
        {"theta": np.array([0.0, np.nan])},
    ],
)
def test_numbers_that_a_run_cannot_go_on_from(way, fields):
    kept = way(SolverState("lbfgs", a_state(**fields)))
    assert not kept.is_sound
    with pytest.warns(UserWarning, match="from the weights only"):
        assert restored(kept) is None


@pytest.mark.parametrize("way", [same, written])
def test_a_line_search_begins_with_an_interval_without_an_end(way):
    search = Search(np.float64(1.0), np.float64(-np.inf))
    kept = way(SolverState("lbfgs", a_state(search=search)))
    assert kept.is_sound
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restored(kept).search == search


def test_a_point_in_the_variables_that_is_not_finite():
    left = np.array([0.0, np.nan])
    assert not SolverState("lbfgs", a_state(), left).is_sound
