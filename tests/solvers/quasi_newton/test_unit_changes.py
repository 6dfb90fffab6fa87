"""L-BFGS changes the units of its parameters where their scales differ."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos


def scaled_broyden(size, decades):
    """The banded function of Broyden, each parameter in a unit of its own.

    It is like SCOSINE and SBRYBND of the CUTEst collection. The minimum is
    zero.
    """
    powers = np.linspace(-decades / 2, decades / 2, size)
    unit = 10.0 ** np.random.default_rng(0).permutation(powers)
    theta = keras.Variable(unit)
    scale = ops.convert_to_tensor(1 / unit)

    def loss():
        x = theta * scale
        zero = ops.zeros_like(x[:1])
        after = ops.concatenate([x[1:], zero])
        before = ops.concatenate([zero, x[:-1]])
        rows = x * (2 + 5 * x**2) + 1
        rows = rows - after * (1 + after) - before * (1 + before)
        return ops.sum(rows**2)

    return theta, loss


def fitted(optimizer, *counts):
    theta, loss = scaled_broyden(300, 5)
    results = [
        kormos.minimize(
            loss,
            [theta],
            optimizer,
            max_iterations=count,
            max_evals=4000,
            resume=i > 0,
        )
        for i, count in enumerate(counts)
    ]
    return results, ops.convert_to_numpy(theta)


def test_scales_that_differ_by_five_decades(float64):
    """With units of one, 20,000 evaluations end at a loss of 281."""
    (result,), _ = fitted(kormos.optimizers.LBFGS(), 10_000)
    assert result.success, result
    assert result.loss < 1e-20
    assert result.history["resets"][-1] >= 1


@pytest.mark.parametrize("counts", [(500, 700), (499, 701), (700, 500)])
def test_a_resumed_run_changes_them_at_the_same_iteration(
    float64, unconverged, counts
):
    _, whole = fitted(kormos.optimizers.LBFGS(), 1200)
    results, found = fitted(kormos.optimizers.LBFGS(), *counts)
    assert sum(result.iterations for result in results) == 1200
    np.testing.assert_array_equal(found, whole)


def test_a_run_of_a_network_keeps_its_units(float64, unconverged):
    keras.utils.set_random_seed(0)
    x = np.linspace(-1, 1, 100)[:, None]
    hidden, last = keras.layers.Dense(10, "tanh"), keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((1,)), hidden, last])
    model.compile("lbfgs", "mse")
    history = model.fit(x, np.sinc(5 * x), epochs=600, verbose=0).history
    assert len(history["loss"]) == 600
    assert history["resets"][499] == history["resets"][-1]
