"""A fit that resumes at any epoch is the fit that was never interrupted."""

import keras
import numpy as np
import pytest

import kormos
from kormos.optimizers.base import whole_states
from native import methods

pytestmark = pytest.mark.usefixtures("unconverged")

EPOCHS = 16
# A direction that differs by a rounding shows in the second loss after it.
FOLLOWED = 4


def data():
    x = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    return x, (x**2).sum(axis=1, keepdims=True)


def net(method):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=method, loss="mse")
    return model


class Keep(keras.callbacks.Callback):
    """Keeps the files of all epochs, as a backup would be."""

    def __init__(self, folder):
        super().__init__()
        self._folder = folder

    def on_epoch_end(self, epoch, logs=None):
        with whole_states():
            self.model.save_weights(self._folder / f"{epoch + 1}.weights.h5")


def resumed(model, folder, **settings):
    """The next losses of fits that continue after each epoch."""
    losses = []
    for epoch in range(1, EPOCHS - FOLLOWED):
        model.load_weights(folder / f"{epoch}.weights.h5")
        history = kormos.fit(
            model, *data(), epochs=FOLLOWED, resume=True, **settings
        )
        losses.append(history.history["loss"])
    return losses


# With a stream, or several processes, JAX evaluates outside of the loop.
@pytest.mark.own_cases
@pytest.mark.parametrize(
    "method, settings",
    [
        *[
            (m, {})
            for m in dict.fromkeys([*methods("lbfgs", "ssbroyden"), "lm"])
        ],
        ("lbfgs", {"stream": True, "batch_size": 10}),
        ("ssbroyden", {"stream": True, "batch_size": 10}),
    ],
)
def test_a_resume_at_every_epoch_takes_the_same_steps(
    method, settings, tmp_path
):
    settings = {"verbose": 0, **settings}
    model, x_and_y = net(method), data()
    history = kormos.fit(
        model,
        *x_and_y,
        epochs=EPOCHS,
        callbacks=[Keep(tmp_path)],
        **settings,
    )
    losses = history.history["loss"]
    assert len(losses) == EPOCHS
    assert resumed(model, tmp_path, **settings) == [
        losses[epoch : epoch + FOLLOWED]
        for epoch in range(1, EPOCHS - FOLLOWED)
    ]
