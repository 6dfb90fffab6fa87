"""KerasTuner over a model class of kormos 0.1."""

import keras
import keras_tuner
import pytest
from keras import layers

from conftest import lindata
from kormos.models import BatchOptimizedSequentialModel

X, Y = lindata(60, noise=0.3)


def build(hp):
    model = BatchOptimizedSequentialModel(
        [keras.Input((5,)), layers.Dense(hp.Int("units", 1, 3), "tanh")]
    )
    model.add(layers.Dense(1))
    model.compile(
        optimizer=hp.Choice("optimizer", ["bfgs", "adam"]), loss="mse"
    )
    return model


@pytest.mark.usefixtures("unconverged")
def test_the_best_model_is_the_one_that_was_scored(tmp_path):
    tuner = keras_tuner.RandomSearch(
        build, objective="val_loss", max_trials=2, seed=0, directory=tmp_path
    )
    data = {"validation_data": (X, Y), "epochs": 3, "verbose": 0}
    tuner.search(X, Y, **data)
    best = tuner.oracle.get_best_trials()[0]
    loss = tuner.get_best_models()[0].evaluate(X, Y, verbose=0)
    assert loss == pytest.approx(best.score, rel=1e-5)
