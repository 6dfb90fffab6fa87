"""`Resample` in `fit` draws new rows, and keeps the curvature."""

import keras
import numpy as np
import pytest

import kormos
from kormos.callbacks import Resample

W = np.array([[1.0], [-2.0], [0.5]], "float32")


def rows(count, rng):
    x = rng.normal(size=(count, 3)).astype("float32")
    return x, x @ W


def line(optimizer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse")
    return model


@pytest.mark.parametrize("method", ["lbfgs", "lm", "l-bfgs-b"])
def test_rows_are_drawn_every_so_many_epochs(method, unconverged):
    drawn = []

    def sampler(count, rng):
        drawn.append(count)
        return rows(count, rng)

    # Three rows determine no plane: only those of several draws do.
    model = line(method)
    start = rows(3, np.random.default_rng(1))
    history = model.fit(
        *start,
        epochs=80,
        callbacks=[Resample(sampler, every=2)],
        verbose=0,
    )
    assert drawn and set(drawn) == {3}
    assert history.epoch == list(range(len(history.epoch)))
    fresh = rows(50, np.random.default_rng(2))
    assert model.evaluate(*fresh, verbose=0) < 1e-3


def test_the_curvature_is_kept(unconverged):
    model = line("lbfgs")
    start = rows(40, np.random.default_rng(1))
    calls = []
    history = model.fit(
        *start,
        epochs=6,
        callbacks=[
            Resample(lambda count, rng: calls.append(count) or start, every=2)
        ],
        verbose=0,
    )
    # The same rows again: the iterates are those of a fit without.
    straight = line("lbfgs")
    keras.utils.set_random_seed(0)
    straight.set_weights([np.zeros((3, 1)), np.zeros(1)])
    again = line("lbfgs")
    again.set_weights(straight.get_weights())
    plain = straight.fit(*start, epochs=6, verbose=0).history["loss"]
    drawn = again.fit(
        *start,
        epochs=6,
        callbacks=[Resample(lambda count, rng: start, every=2)],
        verbose=0,
    ).history["loss"]
    np.testing.assert_allclose(drawn, plain, rtol=1e-5)
    assert calls and len(history.history["loss"]) <= 6


def test_weights_are_drawn_too(unconverged):
    model = line("lbfgs")
    x, y = rows(20, np.random.default_rng(0))
    weight = np.ones(20, "float32")
    model.fit(
        x,
        y,
        sample_weight=weight,
        epochs=4,
        callbacks=[Resample(lambda n, rng: (*rows(n, rng), weight), every=1)],
        verbose=0,
    )
    with pytest.raises(ValueError, match="(x, y, weights).*2 entries"):
        model.fit(
            x,
            y + 1,
            sample_weight=weight,
            epochs=4,
            callbacks=[Resample(rows, every=1)],
            verbose=0,
        )


def test_what_a_fit_cannot_draw():
    x, y = rows(20, np.random.default_rng(0))
    model = line("lbfgs")
    many = Resample(rows, every=1, candidates=100)
    with pytest.raises(ValueError, match="`candidates`.*leave it out"):
        model.fit(x, y, callbacks=[many], verbose=0)
    asking = Resample(lambda count, rng, residuals: rows(count, rng), every=1)
    with pytest.raises(ValueError, match="`sampler`.*`residuals`"):
        model.fit(x, y, callbacks=[asking], verbose=0)
    with pytest.raises(ValueError, match="without `stream=True`"):
        kormos.fit(
            model,
            x,
            y,
            stream=True,
            batch_size=5,
            callbacks=[Resample(rows, every=1)],
            verbose=0,
        )


def test_a_seed_is_a_number_or_none(unconverged):
    start = rows(10, np.random.default_rng(1))
    drawn = Resample(rows, every=1, seed=None)
    line("lbfgs").fit(*start, epochs=2, callbacks=[drawn], verbose=0)
    with pytest.raises(ValueError, match="`seed` must be an integer, 0 or"):
        Resample(rows, every=1, seed=-1)
