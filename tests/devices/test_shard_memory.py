"""The option of L-BFGS that spreads its pairs, where there is one device."""

import keras
import numpy as np
import pytest

import kormos
from conftest import linear


def test_spreading_pairs_on_one_device_is_refused():
    model = linear()
    model.compile(kormos.optimizers.LBFGS(shard_memory=True), loss="mse")
    with pytest.raises(ValueError, match="set_distribution.*one device"):
        model.fit(np.ones((4, 5)), np.ones((4, 1)))


def test_the_setting_of_the_pairs_is_saved():
    optimizer = kormos.optimizers.LBFGS(shard_memory=False)
    config = keras.optimizers.serialize(optimizer)
    assert keras.optimizers.deserialize(config).shard_memory is False


def test_another_setting_of_the_pairs_is_refused():
    with pytest.raises(ValueError, match="shard_memory='all'"):
        kormos.optimizers.LBFGS(shard_memory="all")
