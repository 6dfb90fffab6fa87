"""Limits of a run are kept exactly: evaluations, seconds, a target."""

import time

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import lindata
from conftest import linear
from kormos import processes
from kormos.solvers import budget
from kormos.solvers.quasi_newton import loop
from native import methods

METHODS = [*methods("lbfgs"), "l-bfgs-b", "trust-ncg", "slsqp", "cobyla"]

each_method = pytest.mark.parametrize("method", METHODS)


def rosenbrock(v):
    v = ops.convert_to_tensor(v)
    return 100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2


def minimize(method, **kwargs):
    v = keras.Variable(np.array([-1.2, 1.0]), dtype="float64")
    losses = []
    with pytest.warns(kormos.ConvergenceWarning) as warned:
        result = kormos.minimize(
            lambda: rosenbrock(v),
            [v],
            method,
            loss_callback=losses.append,
            **kwargs,
        )
    assert any(str(result) in str(w.message) for w in warned)
    return result, losses, np.array(ops.convert_to_numpy(v))


# A budget alone, with a clock that stands still


@pytest.fixture
def clock(monkeypatch):
    """Sets the value of `time.perf_counter`."""

    def set_to(now):
        monkeypatch.setattr(processes.time, "perf_counter", lambda: now)

    return set_to


def test_a_budget_without_limits_is_never_spent(clock):
    clock(1e12)
    assert budget.UNLIMITED.spent(10**12) is None
    assert budget.UNLIMITED.started(5.0) == budget.UNLIMITED
    assert budget.UNLIMITED.without(5) == budget.UNLIMITED


@pytest.mark.parametrize(
    "evaluations, status",
    [(0, None), (9, None), (10, "evaluation limit"), (11, "evaluation limit")],
)
def test_evaluations_are_spent_when_the_last_one_is_made(evaluations, status):
    assert budget.Budget(evaluations=10).spent(evaluations) == status


@pytest.mark.parametrize(
    "now, status", [(99.9, None), (103.0, "time limit"), (1e9, "time limit")]
)
def test_seconds_count_from_the_start(now, status, clock):
    clock(now)
    assert budget.Budget(deadline=3.0).started(100.0).spent(0) == status


def test_evaluations_come_before_seconds(clock):
    clock(9.0)
    both = budget.Budget(evaluations=5, deadline=3.0)
    assert both.spent(4) == "time limit"
    assert both.spent(5) == "evaluation limit"


def test_what_is_left_of_a_budget_in_stages(clock):
    clock(0.0)
    whole = budget.Budget(100, 10, 3.0, 0.5)
    left = whole.without(4).without(3)
    assert left == budget.Budget(100, 3, 3.0, 0.5)
    assert left.spent(2) is None
    assert left.spent(3) == "evaluation limit"


# Budgets of runs


@each_method
@pytest.mark.parametrize("most", [1, 7])
def test_max_evals(method, most, float64):
    result, losses, _ = minimize(method, max_evals=most)
    assert result.status == "evaluation limit"
    assert result.evaluations == most == len(losses)
    assert result.loss <= result.initial_loss == losses[0]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b"])
def test_max_evals_of_a_fit(method, steps, unconverged):
    model = linear(l2=1e-3)
    model.compile(optimizer=method, loss="mse")
    history = model.fit(
        *lindata(50, noise=0.3),
        epochs=50,
        steps_per_epoch=steps,
        max_evals=6,
        verbose=0,
    )
    assert history.result.status == "evaluation limit"
    assert history.result.evaluations == 6
    assert history.history["fg_evals"][-1] <= 6


def test_max_evals_is_shared_by_stages(unconverged):
    model = linear(l2=1e-3)
    optimizer = kormos.optimizers.ScipyBatchOptimizer(
        method=["cg", "bfgs"], epochs=[3, 30]
    )
    model.compile(optimizer=optimizer, loss="mse")
    data = lindata(50, noise=0.3)
    history = model.fit(*data, max_evals=9, verbose=0)
    assert history.result.evaluations == 9


class Clock:
    """A clock that advances by a second with each evaluation."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        return self.seconds


@pytest.mark.parametrize("steps", [1, 50])
def test_max_seconds_of_a_compiled_loop(steps, monkeypatch, unconverged):
    clock, made = Clock(), loop.SolverState

    def state_made(key, state):
        clock.seconds = float(state.evaluations)
        return made(key, state)

    monkeypatch.setattr(loop, "SolverState", state_made)
    for module in (loop, processes):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer="lbfgs", loss="mse")
    history = kormos.fit(
        model,
        *lindata(50, noise=0.3),
        epochs=500,
        steps_per_epoch=steps,
        max_seconds=40.5,
        verbose=0,
    )
    assert history.result.status == "time limit"
    assert history.result.evaluations == 41


@pytest.mark.parametrize("method", ["l-bfgs-b", "trust-ncg", "nelder-mead"])
def test_max_seconds_of_scipy(method, monkeypatch, float64):
    clock = Clock()
    monkeypatch.setattr(processes, "time", clock)

    def tick(loss):
        clock.seconds += 1

    v = keras.Variable(np.array([-1.2, 1.0]), dtype="float64")
    with pytest.warns(kormos.ConvergenceWarning, match="time limit"):
        result = kormos.minimize(
            lambda: rosenbrock(v),
            [v],
            method,
            loss_callback=tick,
            max_seconds=4.5,
        )
    assert result.evaluations == 5


@each_method
def test_target_loss(method, float64):
    v = keras.Variable(np.array([-1.2, 1.0]), dtype="float64")
    result = kormos.minimize(lambda: rosenbrock(v), [v], method, target_loss=1)
    assert result.status == "target reached"
    assert not result.success
    assert (result.test, result.threshold) == ("target_loss", 1)
    losses = result.history["loss"]
    assert losses[-1] <= 1 < min(losses[:-1])
    loss = float(rosenbrock(v))
    assert loss == pytest.approx(losses[-1])
    assert "target reached after" in str(result)


def test_a_target_that_the_start_meets(float64):
    for method in METHODS:
        v = keras.Variable(np.array([1.0, 1.5]), dtype="float64")
        result = kormos.minimize(
            lambda v=v: rosenbrock(v), [v], method, target_loss=50
        )
        assert result.status == "target reached"
        assert (result.iterations, result.evaluations) == (0, 1)


def test_a_fit_stops_at_its_target_within_an_epoch():
    model = linear(l2=1e-3)
    model.compile(optimizer="lbfgs", loss="mse")
    history = model.fit(
        *lindata(50, noise=0.3),
        epochs=5,
        steps_per_epoch=10,
        target_loss=0.2,
        verbose=0,
    )
    losses = history.iterations["loss"]
    assert losses[-1] <= 0.2 < losses[-2]
    assert history.history["loss"] == losses[-1:]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_evals": 0},
        {"max_evals": 2.5},
        {"max_seconds": 0},
        {"max_seconds": "1"},
        {"target_loss": "low"},
    ],
)
def test_wrong_limits(wrong):
    model = linear()
    model.compile(optimizer="lbfgs", loss="mse")
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*Received"):
        model.fit(*lindata(20, noise=0.3), **wrong)
