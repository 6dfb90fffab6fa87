"""Residuals and losses that run through `keras.ops.scan`."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import BACKEND

STEPS = 12
STARTS = np.linspace(1.0, 4.0, 9)
# A state that decays by a tenth in each step, with an input of 0.1.
PATHS = np.stack(
    [1.0 + (start - 1.0) * 0.9 ** np.arange(STEPS) for start in STARTS]
)


def path(start, decay, feeds):
    def step(state, feed):
        return state * decay + feed, state

    _, states = ops.scan(step, start, feeds, length=STEPS)
    return states


def constant(decay):
    """The decay and the input of every step, as one vector."""
    feeds = ops.broadcast_to(decay[1], (STEPS,))
    return lambda start: path(start, decay[0], feeds)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["lm", "lbfgs"])
@pytest.mark.parametrize("has_data", [False, True])
def test_a_scan_is_fitted(method, has_data):
    v = keras.Variable(np.array([0.5, 0.3]))
    if has_data:
        result = kormos.least_squares(
            lambda data: (
                ops.transpose(constant(v)(data["start"])) - data["path"]
            ),
            [v],
            method,
            data={"start": STARTS, "path": PATHS},
        )
    else:
        target = ops.convert_to_tensor(PATHS[-1])
        start = ops.convert_to_tensor(STARTS[-1:])[0]
        result = kormos.least_squares(
            lambda: constant(v)(start) - target, [v], method
        )
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(v), [0.9, 0.1], rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["lm", "newton-cg"])
def test_more_variables_than_residuals(method):
    # The input of each step follows from the path, for any decay.
    decay = keras.Variable(np.array(0.8), name="decay")
    feeds = keras.Variable(np.zeros(STEPS), name="feeds")
    target = ops.convert_to_tensor(PATHS[-1])
    start = ops.convert_to_tensor(STARTS[-1:])[0]

    def residuals():
        return path(start, decay.value, feeds.value) - target

    result = kormos.least_squares(residuals, [decay, feeds], method)
    assert result.loss < 1e-12


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Others need no XLA.")
@pytest.mark.parametrize("is_scan", [True, False])
def test_xla_is_not_asked_in_vain(is_scan):
    from kormos.backend import tensorflow as ours
    from kormos.backend.tensorflow_loops import is_refused_by_xla

    lstm = keras.layers.LSTM(2)
    sequence = ops.convert_to_tensor(PATHS[:, :, None].astype("float32"))
    lstm.build(sequence.shape)
    feeds = ops.ones((STEPS,))

    def loss(parts):
        if is_scan:
            return ops.sum(path(ops.ones(()), parts[0], feeds))
        return ops.sum(lstm(sequence * parts[0]))

    gradient = ours._traced(ours.value_and_grad(loss), xla=True)
    assert is_refused_by_xla(gradient, ([ops.ones(())],)) == is_scan
    if not is_scan:
        gradient([ops.ones(())])
