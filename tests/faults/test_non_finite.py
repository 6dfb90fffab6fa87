"""NaN and infinity in data, in the loss, in its gradient, beyond a wall."""

import numpy as np
import pytest

import kormos
from faults.models import FAMILIES
from faults.models import INFINITY
from faults.models import METHODS
from faults.models import NAN
from faults.models import NAN_SLOPE
from faults.models import assert_as_new
from faults.models import assert_usable
from faults.models import data
from faults.models import shared

KIND = "NaN and infinity"

EACH_METHOD = pytest.mark.parametrize("method", METHODS)
EACH_WALL = pytest.mark.parametrize(
    "beyond", [NAN, INFINITY, NAN_SLOPE], ids=["nan", "infinity", "nan slope"]
)


def assert_untouched(model, weights):
    for now, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)


@EACH_METHOD
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
def test_in_data(method, value, name, fault):
    model, (x, y) = shared(method), data()
    arguments = {"x": x, "y": y, "sample_weight": np.ones(len(x))}
    arguments[name] = arguments[name].copy()
    arguments[name][7] = value
    weights = model.get_weights()
    with fault.spares(model, x, y):
        with pytest.raises(ValueError, match=f"`{name}` .* in row 7"):
            model.fit(**arguments, verbose=0)
    assert_untouched(model, weights)


@EACH_METHOD
@EACH_WALL
def test_at_the_start(method, beyond, fault):
    model, (x, y) = shared(method), data(beyond)
    model.set_weights([20 * w + 1 for w in model.get_weights()])
    weights = model.get_weights()
    with fault.spares(model, x, y):
        with pytest.warns(kormos.ConvergenceWarning, match="NaN or infinite"):
            history = model.fit(x, y, verbose=0)
    assert history.result.status == "non-finite"
    assert history.result.iterations == 0
    assert_untouched(model, weights)
    assert_as_new(method)


@pytest.mark.parametrize("method", FAMILIES)
@EACH_WALL
@pytest.mark.parametrize("height", [0.5, 1.0], ids=["to the wall", "beyond"])
def test_beyond_a_wall(method, beyond, height, fault):
    """The optimum is close to the wall, or beyond it."""
    model, (x, y) = shared(method), data(beyond, height)
    with fault.spares(model, x, y):
        history = model.fit(x, y, epochs=20, verbose=0)
    assert_usable(history)
    assert history.result.loss < 0.5 * history.result.initial_loss
    assert np.isfinite(model.predict(x, verbose=0)).all()


@pytest.mark.parametrize("method", ["lbfgs", "ssbroyden", "lm"])
@EACH_WALL
def test_what_a_lost_fit_knew_is_not_resumed(method, beyond, fault):
    model, (x, y) = shared(method), data()
    weights = model.get_weights()
    model.set_weights([20 * w + 1 for w in weights])
    lost = model.fit(*data(beyond), epochs=3, verbose=0)
    assert lost.result.status == "non-finite"
    model.set_weights(weights)
    with fault.spares(model, x, y):
        history = model.fit(x, y, epochs=3, resume=True, verbose=0)
    assert history.result.loss < history.result.initial_loss
    assert_as_new(method)
