"""Fits that continue in float64, or keep the result of float32."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import lindata
from kormos.objective.functions.scalar import FunctionObjective
from kormos.session import float64_tail
from kormos.solvers import statuses
from kormos.solvers.outcome import Outcome

THIRDS = np.array([1 / 3, 2 / 3])
HALVES = np.array([0.5, 0.75])


def out_of_memory(objective, *args):
    raise MemoryError("no room")


def test_a_fit_keeps_what_float32_has_where_float64_fails(monkeypatch):
    x, y = lindata(60, noise=0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    model.compile(loss="mse", metrics=["mae"])
    value_and_grad = kormos.Objective.value_and_grad

    def evaluate(objective, theta):
        is_float64 = objective.program.packing.dtype == "float64"
        return (out_of_memory if is_float64 else value_and_grad)(
            objective, theta
        )

    for name, fails in (
        ("go_on_in_float64", out_of_memory),
        ("value_and_grad", evaluate),
    ):
        model.set_weights([np.ones((5, 1)), np.zeros(1)])
        with monkeypatch.context() as patched:
            patched.setattr(kormos.Objective, name, fails)
            with pytest.warns(UserWarning, match="ends where .*MemoryError"):
                history = kormos.fit(
                    model, x, y, optimizer="l-bfgs-b", epochs=60,
                    precision="auto", verbose=0, validation_data=(x, y),
                )  # fmt: skip
        result = history.result
        assert result.float64_from is None and result.loss < 1e-6
        assert len(history.history["loss"]) == result.iterations > 1
        assert history.history["val_loss"][-1] == pytest.approx(result.loss)
        assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(
            result.loss, abs=1e-9
        )


@pytest.mark.parametrize("name", ["_go_on_in_float64", "value_and_grad"])
def test_a_minimum_is_kept_where_float64_fails(monkeypatch, name):
    variable = keras.Variable(np.zeros(2, "float32"))
    stock = getattr(FunctionObjective, name)

    def evaluate(objective, *args):
        is_float64 = (
            name == "_go_on_in_float64" or objective.evaluation_eps < 1e-10
        )
        return (out_of_memory if is_float64 else stock)(objective, *args)

    monkeypatch.setattr(FunctionObjective, name, evaluate)
    with pytest.warns(UserWarning, match="ends where .*MemoryError"):
        result = kormos.minimize(
            lambda: ops.sum((variable - 1 / 3) ** 4 + (variable - 0.3) ** 2),
            [variable],
            "l-bfgs-b",
            precision="auto",
        )
    assert result.success and result.float64_from is None
    assert np.ptp(ops.convert_to_numpy(variable.value)) == 0
    assert float(ops.convert_to_numpy(variable[0])) == pytest.approx(
        0.3, abs=1e-3
    )


@pytest.mark.usefixtures("unconverged")
def test_constraints_that_do_not_widen_are_told_at_the_start():
    variable = keras.Variable(np.zeros(2, "float32"))

    def constraint():
        if keras.config.floatx() == "float64":
            raise TypeError("no such kernel")
        return variable[0] - 1.0

    def minimize(precision):
        return kormos.minimize(
            lambda: ops.sum(variable**2),
            [variable],
            "slsqp",
            precision=precision,
            constraints=[{"type": "ineq", "fun": constraint}],
        )

    with pytest.raises(ValueError, match="float64.*TypeError: no such kernel"):
        minimize("float64")
    with pytest.warns(UserWarning, match="will not continue .*no such kernel"):
        result = minimize("auto")
    assert result.success
    point = ops.convert_to_numpy(variable.value)
    np.testing.assert_allclose(point, [1, 0], atol=1e-5)


class Variables:
    """An objective and its problem, with variables of float32."""

    storage_eps = 2.0**-23

    def __init__(self, minimum, values, evaluation_eps=2.0**-52):
        self.minimum, self.evaluation_eps = minimum, evaluation_eps
        self.has_float64, self.is_float64 = True, False
        self.assign(values)

    def assign(self, theta):
        self._values = np.asarray(theta, "float32")

    def initial_position(self):
        return self._values.astype("float64")

    def peek(self, theta):
        return float(np.sum((theta - self.minimum) ** 2))

    def go_on_in_float64(self):
        self.is_float64, self.evaluation_eps = True, 2.0**-52


def with_kept_loss(variables, loss=0.0, start=None):
    outcome = Outcome(statuses.CONVERGED, variables.minimum, loss, test="gtol")
    return float64_tail.with_kept_loss(outcome, variables, variables, start)


def test_the_loss_that_variables_keep_is_told():
    variables = Variables(THIRDS, THIRDS)
    outcome = with_kept_loss(variables)
    # Float32 misses 1/3 and 2/3 by a third of the spacing below a half, and
    # by twice that: 2**-25 / 3 and 2**-24 / 3.
    expected = (1 + 4) * (2.0**-25 / 3) ** 2
    assert outcome.kept_loss == pytest.approx(expected, rel=1e-6)
    assert outcome.loss == 0.0 and outcome.test == "gtol"
    np.testing.assert_array_equal(outcome.theta, THIRDS)


def test_what_the_variables_hold_exactly_loses_nothing():
    assert with_kept_loss(Variables(HALVES, HALVES)).kept_loss == 0.0


def test_a_start_that_is_better_than_what_variables_keep_is_kept():
    # The minimum, and a start beside it that float32 holds.
    start = THIRDS.astype("float32").astype("float64")
    variables = Variables(start + 1e-9, start + np.array([0.0, 1e-6]))
    outcome = with_kept_loss(variables, start=start)
    np.testing.assert_array_equal(variables.initial_position(), start)
    assert outcome.kept_loss == pytest.approx(2e-18, rel=1e-6)


@pytest.mark.parametrize("far", [1.0, np.nan, np.inf])
def test_a_start_that_is_no_better_is_not_gone_back_to(far):
    variables = Variables(THIRDS, THIRDS)
    held = variables.initial_position()
    outcome = with_kept_loss(variables, start=THIRDS + far)
    np.testing.assert_array_equal(variables.initial_position(), held)
    assert 0 < outcome.kept_loss < 1e-14


def test_a_finite_start_is_better_than_what_is_not():
    variables = Variables(HALVES, np.array([np.nan, 0.0]))
    outcome = with_kept_loss(variables, start=HALVES)
    np.testing.assert_array_equal(variables.initial_position(), HALVES)
    assert outcome.kept_loss == 0.0


@pytest.mark.parametrize(
    "loss, evaluation_eps",
    [(np.nan, 2.0**-52), (np.inf, 2.0**-52), (0.0, 2.0**-23)],
)
def test_nothing_is_settled_without_a_loss_or_without_float64(
    loss, evaluation_eps
):
    variables = Variables(THIRDS, THIRDS, evaluation_eps)
    outcome = with_kept_loss(variables, loss, start=THIRDS)
    assert outcome.kept_loss is None


@pytest.mark.parametrize(
    "status, is_end",
    [
        (statuses.CONVERGED, True),
        (statuses.NOISE_FLOOR, True),
        (statuses.LINE_SEARCH_FAILED, True),
        (statuses.STALLED, True),
        (statuses.NON_FINITE, True),
        (statuses.ITERATION_LIMIT, False),
        (statuses.TIME_LIMIT, False),
        (statuses.TARGET_REACHED, False),
        (statuses.INTERRUPTED, False),
        (statuses.UNBOUNDED, False),
        (None, False),
    ],
)
def test_float64_follows_where_float32_has_done_what_it_can(status, is_end):
    variables = Variables(THIRDS, THIRDS)
    outcome = Outcome(status, THIRDS, 0.0)
    assert float64_tail.goes_on_in_float64(outcome, variables) == is_end
    variables.has_float64 = False
    assert not float64_tail.goes_on_in_float64(outcome, variables)


def test_objectives_widen_together_and_come_back():
    both = [Variables(THIRDS, THIRDS, 2.0**-23) for _ in range(2)]
    kept = [dict(vars(variables)) for variables in both]
    undo = float64_tail.go_on_in_float64([both[0], None, both[1]])
    assert all(v.is_float64 and v.evaluation_eps == 2.0**-52 for v in both)
    both[0].program = "what float64 made"
    undo()
    assert [vars(variables) for variables in both] == kept


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_one_that_cannot_widen_keeps_all_in_float32(error):
    def fail():
        raise error

    both = [Variables(THIRDS, THIRDS, 2.0**-23) for _ in range(2)]
    both[1].go_on_in_float64 = fail
    with pytest.raises(error):
        float64_tail.go_on_in_float64(both)
    assert not both[0].is_float64 and both[0].evaluation_eps == 2.0**-23


def test_staying_in_float32_is_told_with_its_cause():
    with pytest.warns(kormos.ConvergenceWarning, match="MemoryError, no room"):
        float64_tail.warn_of_staying(MemoryError("no room"))


@pytest.mark.parametrize("method", ["dense-bfgs", "lbfgs", "ssbroyden"])
def test_columns_that_only_float64_tells_apart(method):
    """The float32 run ends on the floor of a valley that float64 goes along."""
    t = np.arange(71.0) - 35
    for seed in range(3, 5):
        rng = np.random.default_rng(seed)
        x = np.column_stack([t**0, t, t + 1e-5 * rng.normal(size=71)])
        y = t + rng.normal(size=71)
        scaled = x / np.linalg.norm(x, axis=0)
        fitted = scaled @ np.linalg.lstsq(scaled, y, rcond=None)[0]
        b = keras.Variable(np.zeros(3), dtype="float32")
        result = kormos.least_squares(
            lambda d, b=b: keras.ops.sum(d["x"] * b, axis=-1) - d["y"],
            [b],
            method,
            data={"x": x, "y": y},
            precision="auto",
        )
        least = np.mean((y - fitted) ** 2)
        assert result.success
        assert result.loss == pytest.approx(least, rel=1e-6)
