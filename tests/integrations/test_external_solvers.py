"""Solvers of other libraries with a `kormos.Objective`."""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos
from conftest import BACKEND


def scipy_with_gradients(objective):
    return scipy.optimize.minimize(
        objective.value_and_grad,
        objective.initial_position(),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-6},
    ).x


def scipy_with_hessian_products(objective):
    return scipy.optimize.minimize(
        objective.value_and_grad,
        objective.initial_position(),
        jac=True,
        hessp=objective.hvp,
        method="trust-ncg",
        options={"gtol": 1e-6},
    ).x


def tfp_eager(objective, start=None):
    import tensorflow_probability as tfp

    if start is None:
        start = ops.convert_to_tensor(objective.initial_position())
    results = tfp.optimizer.lbfgs_minimize(
        objective.value_and_grad,
        initial_position=start,
        tolerance=1e-6,
        max_iterations=500,
    )
    return results.position


def tfp_in_a_function(objective, jit_compile=False):
    import tensorflow as tf

    solve = tf.function(
        lambda start: tfp_eager(objective, start), jit_compile=jit_compile
    )
    return solve(tf.constant(objective.initial_position()))


def tfp_with_xla(objective):
    return tfp_in_a_function(objective, jit_compile=True)


def optax_lbfgs(objective):
    import jax
    import optax

    solver = optax.lbfgs()

    def step(_, carry):
        theta, state = carry
        value, grad = objective.value_and_grad(theta)
        updates, state = solver.update(
            grad,
            state,
            theta,
            value=value,
            grad=grad,
            value_fn=objective.value,
        )
        return optax.apply_updates(theta, updates), state

    theta = jax.numpy.asarray(objective.initial_position())
    carry = theta, solver.init(theta)
    loop = jax.jit(lambda carry: jax.lax.fori_loop(0, 1000, step, carry))
    return loop(carry)[0]


def optimistix_bfgs(objective):
    import jax
    import optimistix

    return optimistix.minimise(
        lambda theta, args: objective.value(theta),
        optimistix.BFGS(rtol=1e-7, atol=1e-7),
        jax.numpy.asarray(objective.initial_position()),
        max_steps=1000,
    ).value


def torch_lbfgs(objective):
    import torch

    theta = torch.tensor(objective.initial_position(), requires_grad=True)
    solver = torch.optim.LBFGS(
        [theta],
        max_iter=500,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure():
        loss, theta.grad = objective.value_and_grad(theta)
        return loss

    solver.step(closure)
    return theta.detach()


SOLVERS = [
    scipy_with_gradients,
    scipy_with_hessian_products,
    *{
        "jax": [optimistix_bfgs, optax_lbfgs],
        "tensorflow": [tfp_eager, tfp_in_a_function, tfp_with_xla],
        "torch": [torch_lbfgs],
    }[BACKEND],
]


def small_net():
    """A net with two frozen parameters, and data for it."""
    grid = np.linspace(-1, 1, 7)
    x = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    y = (x**2).sum(axis=1, keepdims=True)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Rescaling(0.9),
            keras.layers.Dense(
                6,
                activation="tanh",
                kernel_regularizer=keras.regularizers.L2(1e-3),
                bias_initializer=keras.initializers.RandomNormal(seed=1),
                kernel_initializer=keras.initializers.GlorotNormal(seed=2),
            ),
            keras.layers.Dense(
                1,
                kernel_regularizer=keras.regularizers.L2(1e-3),
                kernel_initializer=keras.initializers.GlorotNormal(seed=3),
            ),
        ]
    )
    model.compile(loss="mse")
    return model, x, y


@pytest.mark.own_cases
@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_reaches_what_ours_reaches(solver, float64):
    check(solver, rel=1e-4)


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_solver_in_float32():
    check(SOLVERS[-1], rel=1e-3)


def check(solver, rel):
    model, x, y = small_net()
    before = model.get_weights()
    objective = kormos.Objective(model, x, y, batch_size=20)
    solution = solver(objective)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    objective.assign(solution)
    reached = model.evaluate(x, y, verbose=0)
    solution = ops.convert_to_numpy(solution)
    assert reached == pytest.approx(objective.value(solution), rel=1e-6)

    model.set_weights(before)
    options = {"ftol": 0, "gtol": 1e-6}
    fitted = kormos.fit(
        model,
        x,
        y,
        optimizer="l-bfgs-b",
        epochs=1000,
        options=options,
        verbose=0,
    ).result
    assert fitted.status in ("converged", "noise floor")
    assert reached == pytest.approx(fitted.loss, rel=rel)
    assert reached < 0.5 * fitted.initial_loss
