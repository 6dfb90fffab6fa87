"""Dense methods on nonlinear problems, compiled where the backend can.

Most tests of quasi-Newton methods run `lbfgs` only where compiling takes long.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
import nist
from native import compilations
from native import minimize

each_method = pytest.mark.parametrize("method", ["dense-bfgs", "ssbfgs"])


@each_method
def test_the_valley_of_rosenbrock(method, float64):
    def loss(v):
        return 100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2

    result, v = minimize(loss, [-1.2, 1.0], method)
    assert result.success, result
    assert result.loss < 1e-15
    np.testing.assert_allclose(v, [1, 1], rtol=1e-6)


@each_method
def test_a_regression_of_nist(method, float64):
    """Chwirut2: three parameters, in a rational function of an exponential."""
    (problem,) = (p for p in nist.problems() if p.name == "Chwirut2")
    result, b = minimize(
        lambda b: ops.sum(problem.residuals(b) ** 2), problem.starts[1], method
    )
    assert result.success, result
    assert result.loss == pytest.approx(problem.rss, rel=1e-10)
    np.testing.assert_allclose(b, problem.certified, rtol=1e-5)


def network():
    return keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, "tanh"), layers.Dense(1)]
    )


def weights(seed):
    """Weights drawn by NumPy, which are the same on every backend."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=w.shape) for w in network().get_weights()]


@each_method
def test_a_network_learns_what_one_of_its_kind_computes(method, float64):
    """The minimum is zero, because the targets come from such a network."""
    x = np.random.default_rng(0).uniform(-2, 2, (60, 2))
    first, bias, last, offset = weights(1)
    y = np.tanh(x @ first + bias) @ last + offset
    model = network()
    pairs = zip(weights(1), weights(2), strict=True)
    model.set_weights([w + 0.2 * change for w, change in pairs])
    model.compile(optimizer=method, loss="mse")
    history = model.fit(x, y, epochs=40, steps_per_epoch=50, verbose=0)
    assert history.result.success, history.result
    assert history.result.loss < 1e-15 * history.result.initial_loss
    first, bias, last, offset = model.get_weights()
    found = np.tanh(x @ first + bias) @ last + offset
    np.testing.assert_allclose(found, y, atol=1e-7)
    # The loop of the iterations was compiled, and the trial of their end.
    program = kormos.Objective(model, x, y).program
    compiled = compilations(program).get("value_and_grad", 0)
    assert compiled <= 2 < history.result.evaluations
