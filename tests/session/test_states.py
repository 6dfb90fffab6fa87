"""The state of a solver: where it is kept, saved and shared."""

import threading

import keras
import numpy as np
import pytest

import kormos

X = np.random.default_rng(0).uniform(-1, 1, (60, 4))
Y = np.sin(X.sum(axis=1, keepdims=True))


def net(optimizer, units=6):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(units, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


@pytest.mark.parametrize("keep_state", [None, True])
def test_the_size_of_a_file(keep_state, tmp_path, unconverged):
    # 4,417 parameters: the inverse Hessian alone takes 156 MB.
    model = net(
        kormos.optimizers.SSBroyden(keep_state=keep_state)
        if keep_state
        else kormos.optimizers.SSBroyden(),
        units=736 if keep_state is None else 20,
    )
    model.fit(X, Y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    size = (tmp_path / "model.keras").stat().st_size
    count = model.count_params()
    assert size < 200_000 if keep_state is None else size > 8 * count**2


@pytest.mark.parametrize("method", ["lbfgs", "ssbroyden", "lm"])
def test_a_state_that_nobody_keeps(method, unconverged):
    model = net(method)
    model.optimizer.keep_state = False
    model.fit(X, Y, epochs=3, verbose=0)
    assert model.optimizer.solver_state is None


def test_a_saved_model_without_a_state_says_so(tmp_path, unconverged):
    model = net("lbfgs")
    model.fit(X, Y, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="keep_state = True"):
        loaded.fit(X, Y, epochs=2, resume=True, verbose=0)


def test_a_bad_keep_state():
    with pytest.raises(ValueError, match="`keep_state`.*'yes'"):
        kormos.optimizers.LBFGS(keep_state="yes")


@pytest.mark.parametrize("method", ["lbfgs", "lm", "l-bfgs-b"])
def test_one_optimizer_in_two_threads(method, unconverged):
    def minimum(optimizer, power, found):
        v = keras.Variable(np.array([2.0, -1.0]), dtype="float32")
        if method == "lm":
            kormos.least_squares(
                lambda: (v - 0.5) * v**power, [v], optimizer, max_iterations=30
            )
        else:
            kormos.minimize(
                lambda: keras.ops.sum((v - 0.5) ** 2 * (1 + v ** (2 * power))),
                [v],
                optimizer,
            )
        found[power] = keras.ops.convert_to_numpy(v)

    apart, together = {}, {}
    for power in (1, 2):
        minimum(kormos.optimizers.get(method), power, apart)
    shared = kormos.optimizers.get(method)
    threads = [
        threading.Thread(target=minimum, args=(shared, power, together))
        for power in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for power in (1, 2):
        np.testing.assert_array_equal(together[power], apart[power])


@pytest.mark.parametrize("method", ["lbfgs", "lm", "l-bfgs-b", "newton-cg"])
def test_counters_are_set_by_every_door(method):
    v = keras.Variable(np.array([2.0, -1.0]), dtype="float32")
    optimizer = kormos.optimizers.get(method)
    if method == "lm":
        result = kormos.least_squares(lambda: v - 0.5, [v], optimizer)
        assert 0 < result.jacobians <= result.evaluations + 5
    else:
        result = kormos.minimize(
            lambda: keras.ops.sum((v - 0.5) ** 2), [v], optimizer
        )
        assert result.jacobians == 0
    assert optimizer.fg_evals == result.evaluations > 0
    assert optimizer.hessp_evals == result.hessian_products
    assert optimizer.jacobians == result.jacobians
    assert int(optimizer.iterations) == result.iterations > 0
    assert (optimizer.results == []) == (method in ("lbfgs", "lm"))


@pytest.mark.parametrize("method", ["lbfgs", "ssbroyden", "lm"])
def test_a_minimization_goes_on_in_another_process(method, tmp_path, float64):
    def residuals(v):
        return keras.ops.stack([10 * (v[1] - v[0] ** 2), 1 - v[0]])

    def run(v, optimizer, **settings):
        return kormos.least_squares(
            lambda: residuals(v), [v], optimizer, verbose=0, **settings
        )

    start = [-1.2, 1.0]
    whole = keras.Variable(start, dtype="float64")
    run(whole, kormos.optimizers.get(method), max_iterations=12)
    first = keras.Variable(start, dtype="float64")
    optimizer = kormos.optimizers.get(method)
    run(first, optimizer, max_iterations=5)
    optimizer.save_state(tmp_path / "run.npz")
    other = keras.Variable([0.0, 0.0], dtype="float64")
    loaded = kormos.optimizers.get(method)
    loaded.load_state(tmp_path / "run.npz", [other])
    run(other, loaded, max_iterations=7, resume=True)
    np.testing.assert_allclose(np.array(other), np.array(whole), rtol=1e-12)
    with pytest.raises(ValueError, match="2 parameters"):
        loaded.load_state(tmp_path / "run.npz", [keras.Variable([1.0])])


def test_a_method_without_a_state_has_none_to_save(tmp_path):
    with pytest.raises(ValueError, match="no state to save"):
        kormos.optimizers.get("bfgs").save_state(tmp_path / "run.npz")
