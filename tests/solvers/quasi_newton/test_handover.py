"""A dense method takes over the curvature of L-BFGS, also from a file."""

import keras
import numpy as np
import pytest

import kormos
from interrupted import check_goes_on
from kormos.optimizers import LBFGS
from kormos.optimizers import Chain
from kormos.solvers.quasi_newton.handover import inverse_hessian

pytestmark = pytest.mark.usefixtures("float64")

DENSE = ["dense-bfgs", "ssbfgs", "ssbroyden"]


def rosenbrock(size=12):
    v = keras.Variable(np.linspace(-1.2, 1.0, size), dtype="float64")

    def loss_fn():
        ahead, behind = v[1:], v[:-1]
        return keras.ops.sum(100 * (ahead - behind**2) ** 2 + (1 - behind) ** 2)

    return v, loss_fn


def recursion(steps, changes, gamma):
    """Nocedal and Wright, equation 6.17, from the oldest pair to the latest."""
    size = steps.shape[1]
    found = gamma * np.eye(size)
    for s, y in zip(steps, changes, strict=True):
        rho = 1 / (s @ y)
        left = np.eye(size) - rho * np.outer(s, y)
        found = left @ found @ left.T + rho * np.outer(s, s)
    return found


@pytest.mark.parametrize("memory", [4, 40])
@pytest.mark.parametrize("iterations", [3, 15])
def test_the_matrix_is_that_of_the_formula_of_bfgs(memory, iterations):
    v, loss_fn = rosenbrock()
    optimizer = LBFGS(memory=memory)
    kormos.minimize(
        loss_fn, [v], optimizer, max_iterations=iterations, verbose=0
    )
    arrays = optimizer.solver_state.arrays()
    names = sorted(
        (name for name in arrays if name.startswith("store.")),
        key=lambda name: int(name.split(".")[1]),
    )
    pairs = np.concatenate([arrays[name] for name in names])
    # The slot after the free one is the oldest.
    order = np.roll(np.arange(len(pairs)), -int(arrays["curvature.place"]) - 1)
    used = [i for i in order if arrays["curvature.inverse"][i].any()]
    assert len(used) == min(iterations, memory)
    expected = recursion(
        pairs[used, 0], pairs[used, 1], float(arrays["curvature.scale"])
    )
    found = inverse_hessian(arrays)
    np.testing.assert_allclose(
        found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max()
    )


@pytest.mark.parametrize("method", DENSE)
def test_the_first_step_after_l_bfgs_is_the_one_that_it_would_take(method):
    losses = []
    for optimizer in (
        Chain(["lbfgs", method], epochs=[9, 1]),
        Chain(["lbfgs"], epochs=[10]),
    ):
        v, loss_fn = rosenbrock()
        result = kormos.minimize(loss_fn, [v], optimizer, verbose=0)
        losses.append(result.history["loss"])
    assert len(losses[0]) == 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("method", DENSE)
def test_a_chain_within_bounds_ends_at_the_bounded_minimum(method):
    v = keras.Variable(np.full(4, 0.5), dtype="float64")
    matrix = np.diag([1.0, 10.0, 100.0, 1000.0]) + 0.5
    target = np.array([2.0, -1.0, 0.3, 0.7])

    def loss_fn():
        d = v - target
        return 0.5 * keras.ops.sum(d * keras.ops.matmul(matrix, d))

    result = kormos.minimize(
        loss_fn,
        [v],
        Chain(["lbfgs", method], epochs=[4, 60]),
        bounds=[(v, (0.0, 1.0))],
        verbose=0,
    )
    # The first two are at their bounds; the others solve a linear system.
    fixed = np.array([1.0, 0.0])
    shift = matrix[2:, :2] @ (fixed - target[:2])
    free = target[2:] - np.linalg.solve(matrix[2:, 2:], shift)
    assert result.success
    np.testing.assert_allclose(np.array(v), [*fixed, *free], atol=1e-6)


def network(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (200, 2))
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(20, "tanh"),
            keras.layers.Dense(1),
        ]
    )
    return model, x, np.sin(2 * x[:, :1]) * x[:, 1:]


def test_the_curvature_saves_evaluations():
    handed, anew = 0, 0
    for seed in range(2):
        model, x, y = network(seed)
        model.compile(Chain(["lbfgs", "dense-bfgs"], epochs=[60, 2000]), "mse")
        result = model.fit(x, y, target_loss=1e-4, verbose=0).result
        assert result.status == "target reached"
        handed += result.stages[1].evaluations
        model, x, y = network(seed)
        model.compile("lbfgs", "mse")
        model.fit(x, y, epochs=60, verbose=0)
        model.compile("dense-bfgs", "mse")
        history = model.fit(x, y, epochs=2000, target_loss=1e-4, verbose=0)
        assert history.result.status == "target reached"
        anew += history.result.evaluations
    # Over six seeds it was 0.4 times as many.
    assert handed < 0.7 * anew


@pytest.mark.parametrize("method", DENSE)
def test_a_file_of_l_bfgs_is_continued_by_a_dense_method(method, tmp_path):
    path = tmp_path / "state.weights.h5"
    model, x, y = network(0)
    model.compile(LBFGS(keep_state=True), "mse")
    model.fit(x, y, epochs=5, verbose=0)
    model.save_weights(path)
    weights = []
    for name in ("lbfgs", method):
        model.compile(name, "mse")
        model.optimizer.keep_state = True
        model.load_weights(path)
        model.fit(x, y, epochs=1, resume=True, verbose=0)
        weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("at", [3, 4, 6])
def test_an_interrupted_chain_goes_on_with_the_curvature(at, tmp_path):
    def fitted(*callbacks):
        model, x, y = network(0)
        model.compile(Chain(["lbfgs", "ssbroyden"], epochs=[5, 5]), "mse")
        backup = kormos.callbacks.BackupAndRestore(tmp_path / "backup")
        model.fit(x, y, verbose=0, callbacks=[backup, *callbacks])
        return [np.array(w) for w in model.get_weights()]

    check_goes_on(fitted, at)
