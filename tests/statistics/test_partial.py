"""Summaries of some parameters are parts of the whole summary."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from kormos import free_memory

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(4)
X = RNG.normal(size=(80, 3))
Y = np.tanh(X @ [1.0, -0.5, 0.2]) + 0.1 * RNG.normal(size=80)
NEW = RNG.normal(size=(4, 3))


def network(penalty=None, loss="mse", activation=None, y=Y):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(
                1,
                activation="tanh",
                kernel_regularizer=penalty,
                bias_regularizer=penalty,
                name="hidden",
            ),
            layers.Dense(
                1,
                activation=activation,
                kernel_regularizer=penalty,
                bias_regularizer=penalty,
                name="out",
            ),
        ]
    )
    model.compile(optimizer="lm", loss=loss)
    model.fit(X, y, epochs=300, verbose=0)
    return model


CASES = {
    "mse": {},
    "penalty": {"penalty": keras.regularizers.L2(1e-3)},
    "poisson": {
        "loss": "poisson",
        "activation": "exponential",
        "penalty": keras.regularizers.L2(1e-3),
        "y": RNG.poisson(np.exp(Y)),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_some_parameters_have_the_errors_that_all_have(name):
    case = CASES[name]
    model, y = network(**case), case.get("y", Y)
    whole = kormos.summary(model, X, y)
    names = [whole.names[i] for i in (4, 2)]
    part = kormos.summary(model, X, y, parameters=names)
    # With a penalty, the degrees of freedom are an estimate.
    assert part.parameters == pytest.approx(whole.parameters, rel=0.05)
    scale = part.residual_standard_error / whole.residual_standard_error
    scale = 1.0 if np.isnan(scale) else scale
    covariance = scale**2 * whole.covariance[np.ix_([4, 2], [4, 2])]
    assert part.covariance == pytest.approx(covariance, rel=1e-6)
    assert part.log_likelihood == pytest.approx(whole.log_likelihood)
    assert part.names == names
    assert "2 of 6 parameters" in str(part)
    alone = kormos.summary(model, X, y, parameters=[])
    found, expected = alone.predict(NEW), whole.predict(NEW)
    assert found.mean == pytest.approx(expected.mean, rel=1e-12)
    assert found.standard_error == pytest.approx(
        scale * expected.standard_error, rel=1e-6
    )


def line(design, y, **settings):
    v = keras.Variable(np.zeros(design.shape[1]), dtype="float64", name="b")
    return kormos.least_squares(
        lambda d: ops.matmul(d["x"], v[:, None])[:, 0] - d["y"],
        [v],
        data={"x": design, "y": y},
        **settings,
    )


def test_what_is_fixed_or_not_determined_has_no_error():
    design = np.column_stack([X, X[:, 0], np.ones(80)])
    result = line(design, Y, fixed={"b": [2]})
    part = result.summary(parameters=[0, 1, 2, 4])
    assert np.isnan(part.standard_errors).tolist() == [True, False, True, False]
    whole = result.summary()
    errors = whole.standard_errors[[1, 4]] / whole.residual_standard_error
    own = part.standard_errors[[1, 3]] / part.residual_standard_error
    assert own == pytest.approx(errors, rel=1e-6)


def test_a_model_beyond_memory_is_told_by_part(monkeypatch):
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 1e9)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(3000, activation="tanh"),
            layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    x, y = X[:20, :1], Y[:20]
    with pytest.raises(ValueError, match=r"5\.2 GB.*parameters=\[\.\.\.\]"):
        kormos.summary(model, x, y)


def test_what_needs_the_whole_matrix_is_refused():
    model = network()
    with pytest.raises(ValueError, match="expected information"):
        kormos.summary(model, X, Y, covariance="HC0", parameters=[0])
    with pytest.raises(ValueError, match="from 0 to 5"):
        kormos.summary(model, X, Y, parameters=[6])
