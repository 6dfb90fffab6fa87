"""Ridge regression: loss, gradient, Hessian and solution in closed form."""

import keras
import numpy as np
import pytest
from keras import layers

import kormos
from kormos.models import BatchOptimizedModel
from kormos.models import BatchOptimizedSequentialModel
from kormos.optimizers import ScipyBatchOptimizer

RANK = 5
PENALTY = 0.1
TRUE = np.arange(1.0, RANK + 1)[:, None]
RANDOM = np.random.RandomState(0)
INPUTS = {
    "ones": np.ones((2, RANK)),
    "random": RANDOM.normal(size=(7, RANK)),
}
X = RANDOM.normal(size=(40, RANK))
Y = X @ TRUE + 0.1 * RANDOM.normal(size=(40, 1))
WEIGHTS = RANDOM.uniform(0.1, 2.0, size=40)

pytestmark = pytest.mark.usefixtures("float64")


def dense():
    return layers.Dense(
        1,
        use_bias=False,
        kernel_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(PENALTY),
    )


def sequential():
    return BatchOptimizedSequentialModel([keras.Input((RANK,)), dense()])


def functional():
    inputs = keras.Input((RANK,))
    return BatchOptimizedModel(inputs=inputs, outputs=dense()(inputs))


def solution(x, y, weights):
    """The minimizer of the mean of the weighted squares plus the penalty."""
    matrix = x.T @ (weights[:, None] * x) / len(x) + PENALTY * np.eye(RANK)
    return np.linalg.solve(matrix, x.T @ (weights[:, None] * y) / len(x))


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("inputs", INPUTS)
def test_loss_gradient_and_hessian_at_ones(inputs, batch_size):
    x = INPUTS[inputs]
    y, ones = x @ TRUE, np.ones((RANK, 1))
    model = sequential()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    objective = kormos.Objective(model, x, y, batch_size=batch_size)
    theta = objective.initial_position()
    np.testing.assert_array_equal(theta, ones[:, 0])

    errors = x @ ones - y
    loss = np.mean(errors**2) + PENALTY * RANK
    gradient = 2 * (x.T @ errors / len(x) + PENALTY * ones)[:, 0]
    hessian = 2 * (x.T @ x / len(x) + PENALTY * np.eye(RANK))
    found, slope = objective.value_and_grad(theta)
    # TensorFlow rounds the factor of a regularizer to float32.
    close = {"rtol": 1e-7, "atol": 1e-7}
    np.testing.assert_allclose(found, loss, **close)
    np.testing.assert_allclose(objective.value(theta), loss, **close)
    np.testing.assert_allclose(slope, gradient, **close)
    for column, unit in zip(hessian.T, np.eye(RANK), strict=True):
        np.testing.assert_allclose(objective.hvp(theta, unit), column, **close)


@pytest.mark.parametrize("make", [sequential, functional])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_weighted_fit_is_the_solution(make, stages):
    model = make()
    model.compile(
        optimizer=ScipyBatchOptimizer(
            method=["newton-cg", "bfgs"][:stages], epochs=[50, 50][:stages]
        ),
        loss=keras.losses.MeanSquaredError(),
    )
    history = model.fit_batch(X, Y, sample_weight=WEIGHTS, verbose=0)
    assert len(model.optimizer.results) == stages
    assert history.result.success
    np.testing.assert_allclose(
        model.get_weights()[0], solution(X, Y, WEIGHTS), rtol=1e-6
    )


def test_a_weighted_fit_is_the_solution_in_two_fits():
    model = sequential()
    model.compile(optimizer="bfgs", loss="mse")
    for epochs in (2, 50):
        result = model.fit(
            X, Y, sample_weight=WEIGHTS, epochs=epochs, verbose=0
        ).result
    assert result.success
    np.testing.assert_allclose(
        model.get_weights()[0], solution(X, Y, WEIGHTS), rtol=1e-6
    )
