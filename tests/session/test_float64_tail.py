"""Fits that go on in float64, or cannot: what float32 has found is kept."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import lindata
from kormos.objective.functions.scalar import FunctionObjective


def out_of_memory(objective, *args):
    raise MemoryError("no room")


def test_a_fit_keeps_what_float32_has_where_float64_fails(monkeypatch):
    x, y = lindata(60, noise=0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    model.compile(loss="mse", metrics=["mae"])
    value_and_grad = kormos.Objective.value_and_grad

    def evaluate(objective, theta):
        is_wide = objective.program.packing.dtype == "float64"
        return (out_of_memory if is_wide else value_and_grad)(objective, theta)

    for name, fails in (("widen", out_of_memory), ("value_and_grad", evaluate)):
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


@pytest.mark.parametrize("name", ["_widen", "value_and_grad"])
def test_a_minimum_is_kept_where_float64_fails(monkeypatch, name):
    variable = keras.Variable(np.zeros(2, "float32"))
    stock = getattr(FunctionObjective, name)

    def evaluate(objective, *args):
        is_wide = name == "_widen" or objective.epsilon < 1e-10
        return (out_of_memory if is_wide else stock)(objective, *args)

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
    with pytest.warns(UserWarning, match="will not go on .*no such kernel"):
        result = minimize("auto")
    assert result.success
    point = ops.convert_to_numpy(variable.value)
    np.testing.assert_allclose(point, [1, 0], atol=1e-5)
