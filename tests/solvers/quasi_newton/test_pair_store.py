"""The inverse Hessian of L-BFGS from pairs in float64 and in float32."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import tree

import kormos
from kormos import backend
from kormos.backend.common import as_tensor
from kormos.solvers.quasi_newton.lbfgs_curvature import LimitedMemory
from kormos.solvers.quasi_newton.state import Pair

SIZE, MEMORY = 40, 8


@pytest.fixture
def narrow_from_one(monkeypatch):
    monkeypatch.setattr(backend, "narrow_from", lambda: 1)


def steps_and_changes(count, scale):
    """Steps, and the changes of the gradient of a quadratic along them."""
    rng = np.random.default_rng(0)
    curvature = np.geomspace(1e-2, 1e2, SIZE)
    steps = rng.standard_normal((count, SIZE))
    return steps, scale * curvature * steps


def two_loops(pairs, vector):
    """Nocedal and Wright, algorithm 7.4."""
    found, shares = vector, []
    for s, y in reversed(pairs):
        shares.append((s @ found) / (s @ y))
        found = found - shares[-1] * y
    s, y = pairs[-1]
    found = found * (s @ y) / (y @ y)
    for (s, y), share in zip(pairs, reversed(shares), strict=True):
        found = found + (share - (y @ found) / (s @ y)) * s
    return found


def after(pairs, grad, dtype):
    """The store and what is known after some pairs, and the direction."""
    memory = LimitedMemory(MEMORY, "usual")
    store, known = tree.map_structure(as_tensor, memory.empty(SIZE, dtype))
    nothing = np.zeros(SIZE)
    for good, (s, y) in [
        (False, (nothing, nothing)),
        *((True, p) for p in pairs),
    ]:
        grad = grad + y
        s, y, steep = map(as_tensor, (s, y, grad))
        good, one = as_tensor(np.bool_(good)), as_tensor(np.float64(1.0))
        store = memory.record(store, known, good, s, y)
        pair = Pair(good, s, y, one, s, s, as_tensor(np.bool_(False)))
        known, direction = memory.update(store, known, pair, steep)
    return memory, store, known, grad, backend.to_numpy(direction)


@pytest.mark.parametrize("scale", [1.0, 1e-60, 1e60])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_products_are_those_of_the_two_loops(dtype, scale, narrow_from_one):
    steps, changes = steps_and_changes(2 * MEMORY + 3, scale)
    pairs = list(zip(steps, changes, strict=True))
    grad = scale * np.random.default_rng(1).standard_normal(SIZE)
    with backend.float64():
        memory, store, known, grad, direction = after(pairs, grad, dtype)
        kept = pairs[-MEMORY:]
        assert keras.backend.standardize_dtype(store[0].dtype) == dtype
        size = np.linalg.norm(direction)
        tolerance = 1e-10 if dtype == "float64" else 1e-4
        error = direction + two_loops(kept, grad)
        assert np.linalg.norm(error) <= tolerance * size
        vector = np.random.default_rng(2).standard_normal(SIZE)
        found = backend.to_numpy(
            memory.product(store, known, as_tensor(vector))
        )
        exact = two_loops(kept, vector)
        error = np.linalg.norm(found - exact)
        assert error <= tolerance * np.linalg.norm(exact)


def test_a_short_vector_is_kept_in_float64(monkeypatch):
    monkeypatch.setattr(backend, "narrow_from", lambda: SIZE + 1)
    store, _ = LimitedMemory(MEMORY, "usual").empty(SIZE, "float32")
    assert store[0].dtype == np.float64


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(16, "tanh"),
            layers.Dense(16, "tanh"),
            layers.Dense(1),
        ]
    )


def rows():
    x = np.random.default_rng(0).uniform(-1, 1, (60, 2)).astype("float32")
    return x, np.sin(3 * x[:, :1]) * x[:, 1:]


def losses(factor, **settings):
    x, y = rows()
    model = network()
    model.compile("lbfgs", keras.losses.MeanSquaredError())
    weight = np.full(len(x), factor, "float32")
    return model.fit(
        x, y, sample_weight=weight, epochs=30, verbose=0, **settings
    ).history["loss"]


def test_other_units_of_the_loss_take_the_same_steps(
    narrow_from_one, unconverged
):
    usual = np.array(losses(1.0))
    assert usual[-1] < 0.1 * usual[0]
    for factor in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(np.array(losses(factor)) / factor, usual)


def test_a_fit_goes_on_in_float64_with_its_pairs(narrow_from_one, unconverged):
    """A chain's second stage reads the pairs of the first."""
    x, y = rows()
    model = network()
    chain = kormos.optimizers.Chain(
        ["lbfgs", "lbfgs"], epochs=[30, 30], precision=["float32", "float64"]
    )
    model.compile(chain, "mse")
    history = model.fit(x, y, verbose=0)
    loss = history.history["loss"]
    stages = [row.status for row in history.result.stages]
    assert len(loss) == 60, stages
    # The first step of the second stage never raises the loss.
    assert loss[30] <= loss[29]
    assert loss[-1] < 0.7 * loss[29]


def test_a_saved_state_continues_to_the_bit(
    narrow_from_one, unconverged, tmp_path
):
    x, y = rows()

    def fitted(model, epochs, **settings):
        history = model.fit(x, y, epochs=epochs, verbose=0, **settings)
        return history.history["loss"]

    whole = network()
    whole.compile(kormos.optimizers.LBFGS(keep_state=True), "mse")
    expected = fitted(whole, 20)
    first = network()
    first.compile(kormos.optimizers.LBFGS(keep_state=True), "mse")
    fitted(first, 10)
    first.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert fitted(loaded, 10, resume=True) == expected[10:]
