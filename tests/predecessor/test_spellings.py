"""Code for kormos 0.1 works, or raises an error that says what replaces it."""

import re

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import layers

import kormos
from conftest import lindata
from kormos.models import BatchOptimizedModel
from kormos.models import BatchOptimizedSequentialModel
from kormos.optimizers import BatchOptimizer
from kormos.optimizers import ScipyBatchOptimizer

X, Y = lindata(60, noise=0.3)
OPTIMUM = np.linalg.lstsq(X, Y, rcond=None)[0]


def model_of(optimizer="l-bfgs-b"):
    model = BatchOptimizedSequentialModel(
        [keras.Input((5,)), layers.Dense(1, use_bias=False)]
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


def weights(model):
    return model.get_weights()[0][:, 0]


def is_optimum(model):
    np.testing.assert_allclose(weights(model), OPTIMUM[:, 0], atol=1e-4)


def is_refused(act, *words):
    with pytest.raises(Exception, match=".*".join(map(re.escape, words))):
        act()


@pytest.mark.parametrize("name", ["L-BFGS-B", "l-bfgs-b", "bfgs", "scipy"])
def test_an_optimizer_by_name_and_by_instance(name):
    made = kormos.optimizers.get(name)
    assert isinstance(made, ScipyBatchOptimizer)
    assert kormos.optimizers.get(made) is made
    for optimizer in (name, made):
        model = model_of(optimizer)
        assert isinstance(model.optimizer, ScipyBatchOptimizer)
        model.fit_batch(X, Y, epochs=40, verbose=0)
        is_optimum(model)


@pytest.mark.usefixtures("unconverged")
def test_adam_and_back():
    model = model_of(keras.optimizers.Adam(0.01))
    history = model.fit(X, Y, epochs=3, batch_size=20, verbose=0)
    assert "fg_evals" not in history.history
    reached = model.evaluate(X, Y, verbose=0)
    for optimizer in ("cg", "adam", "l-bfgs-b"):
        before = model.get_weights()
        model.compile(optimizer=optimizer, loss="mse")
        np.testing.assert_array_equal(model.get_weights()[0], before[0])
        is_stock = optimizer == "adam"
        history = model.fit(X, Y, epochs=3 if is_stock else 40, verbose=0)
        assert ("fg_evals" in history.history) is not is_stock
    assert model.evaluate(X, Y, verbose=0) < reached
    is_optimum(model)


def functional(cls=BatchOptimizedModel):
    inputs = keras.Input((5,))
    return cls(inputs=inputs, outputs=layers.Dense(1)(inputs))


class Graph(BatchOptimizedModel):
    pass


class OfItsOwn(BatchOptimizedModel):
    pass


def test_instances_of_the_model_classes():
    for model in (functional(), functional(Graph), OfItsOwn(), model_of()):
        assert isinstance(model, BatchOptimizedModel)
        assert isinstance(model, keras.Model)
    assert issubclass(BatchOptimizedSequentialModel, BatchOptimizedModel)
    stock = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    assert not isinstance(stock, BatchOptimizedModel)
    assert not isinstance(model_of(), OfItsOwn)


@pytest.mark.parametrize("optimizer", ["l-bfgs-b", "lbfgs"])
def test_how_to_load_data_is_gone(optimizer):
    for fit in (model_of(optimizer).fit, model_of(optimizer).fit_batch):
        is_refused(lambda fit=fit: fit(X, Y, workers=1), "PyDataset", "workers")


def test_arguments_that_are_gone():
    is_refused(lambda: ScipyBatchOptimizer(dtype="float64"), "precision=")
    is_refused(lambda: BatchOptimizer(dtype="float64"), "precision=")
    is_refused(lambda: ScipyBatchOptimizer(max_cache_entries=10), "Leave it")
    is_refused(lambda: ScipyBatchOptimizer(methods="cg"), "Received: methods")


@pytest.mark.parametrize(
    "option, words",
    [("disp", "`verbose`"), ("maxcors", "It is 'maxcor'"), ("eps", "exact")],
)
def test_options_that_are_gone(option, words):
    model = model_of()
    before = model.get_weights()
    fit = model.fit
    is_refused(lambda: fit(X, Y, options={option: 1}), words, option)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_methods_that_are_gone():
    optimizer = ScipyBatchOptimizer()
    is_refused(lambda: optimizer.build(model_of(), (X, Y)), "kormos.fit(")
    for name, words in {
        "minimize": "`kormos.minimize`",
        "func_and_grad": "kormos.Objective",
        "get_weights": "initial_position",
    }.items():
        assert not hasattr(optimizer, name)
        is_refused(lambda name=name: getattr(optimizer, name), words)


class Descent(BatchOptimizer):
    def minimize(self, epochs=10, callback=None, pretrain_fn=None):
        return self.get_weights()


def test_an_optimizer_with_a_minimize_of_its_own():
    fit = model_of(Descent()).fit
    is_refused(lambda: fit(X, Y, epochs=3), "`stages`", "`minimize`", "Descent")


LOW, HIGH = np.array([-np.inf, 0, 0, 0.5, -1]), np.array([0, 0.1, 1, 2, 1])
BOUNDS = {
    "Bounds": scipy.optimize.Bounds(LOW, HIGH),
    "pairs": list(zip([None, *LOW[1:]], HIGH, strict=True)),
    "an array": np.stack([LOW, HIGH], axis=1),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_bounds_of_the_vector(kind, float64):
    expected = scipy.optimize.lsq_linear(X, Y[:, 0], (LOW, HIGH), tol=1e-14).x
    model = model_of(ScipyBatchOptimizer(bounds=BOUNDS[kind]))
    model.fit(X, Y, epochs=200, verbose=0)
    np.testing.assert_allclose(weights(model), expected, atol=1e-6)
    again = type(model.optimizer).from_config(model.optimizer.get_config())
    other = model_of("adam")
    kormos.fit(other, X, Y, optimizer=again, epochs=200, verbose=0)
    np.testing.assert_allclose(weights(other), expected, atol=1e-6)


def test_bounds_for_all_and_for_too_many():
    limits = scipy.optimize.Bounds(-0.1, 0.1)
    model = model_of(ScipyBatchOptimizer(bounds=limits))
    model.fit(X, Y, epochs=100, verbose=0)
    assert np.abs(weights(model)).max() <= 0.1 + 1e-7
    again = ScipyBatchOptimizer.from_config(model.optimizer.get_config())
    assert again.bounds == {".*": [-0.1, 0.1]} or again.bounds == {
        ".*": (-0.1, 0.1)
    }
    fit = model_of().fit
    is_refused(lambda: fit(X, Y, bounds=[(0, 1)] * 4), "5 parameters", "4")
    is_refused(lambda: fit(X, Y, bounds=[(1, 0)] * 5), "lower bound")


def test_linear_constraints_of_the_vector(float64):
    matrix = np.array([[1.0, 1, 1, 1, 1], [1, -1, 0, 0, 0], [0, 0, 1, 0, 0]])
    low, high = [0.5, -np.inf, -0.2], [0.5, -0.3, 0.2]
    constraint = scipy.optimize.LinearConstraint(matrix, low, high)
    expected = scipy.optimize.minimize(
        lambda v: np.mean((X @ v - Y[:, 0]) ** 2),
        np.zeros(5),
        method="SLSQP",
        constraints=constraint,
        tol=1e-14,
    ).x
    for method in ("slsqp", "trust-constr", "cobyla"):
        model = model_of(ScipyBatchOptimizer(method=method))
        model.fit(X, Y, epochs=3000, verbose=0, constraints=[constraint])
        np.testing.assert_allclose(weights(model), expected, atol=1e-4)
    too_long = scipy.optimize.LinearConstraint(np.ones(6), 0, 1)
    fit = model_of("slsqp").fit
    is_refused(
        lambda: fit(X, Y, constraints=too_long), "5 parameters", "(1, 6)"
    )


def test_constraints_of_a_vector():
    def of_vector(theta):
        return 1 - theta[0]

    given = {"type": "ineq", "fun": of_vector}
    nonlinear = scipy.optimize.NonlinearConstraint(of_vector, 0, 1)
    for constraint in (given, {**given, "jac": of_vector}, nonlinear):
        fit = model_of("slsqp").fit
        is_refused(
            lambda fit=fit, constraint=constraint: fit(
                X, Y, constraints=constraint
            ),
            "variables",
            "lambda: 1 - v[0]",
        )


def test_a_constrained_optimizer_can_be_saved(tmp_path):
    rows = scipy.optimize.LinearConstraint(np.ones(5), 0, 1)
    model = model_of(ScipyBatchOptimizer(method="slsqp", constraints=rows))
    with pytest.warns(UserWarning, match="`constraints` holds"):
        model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(weights(loaded), weights(model))
