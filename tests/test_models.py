"""The model classes of the predecessor."""

import keras
import numpy as np
import pytest
from keras import layers

import kormos
from conftest import lindata
from kormos.models import BatchOptimizedModel
from kormos.models import BatchOptimizedSequentialModel

X, Y = lindata(60, noise=0.3)
OPTIMUM = np.linalg.lstsq(X, Y, rcond=None)[0]


def graph():
    inputs = keras.Input((5,))
    return inputs, layers.Dense(1, use_bias=False)(inputs)


def functional():
    return BatchOptimizedModel(*graph())


def sequential():
    return BatchOptimizedSequentialModel(
        [keras.Input((5,)), layers.Dense(1, use_bias=False)]
    )


@keras.saving.register_keras_serializable(package="kormos_tests")
class Subclassed(BatchOptimizedModel):
    def __init__(self, units=1, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, use_bias=False)

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {"units": self.units, "name": self.name}


@keras.saving.register_keras_serializable(package="kormos_tests")
class SubclassedFunctional(BatchOptimizedModel):
    """A model that builds its own graph, like Keras' own applications."""

    def __init__(self, units=1, **kwargs):
        inputs = keras.Input((5,))
        outputs = layers.Dense(units, use_bias=False)(inputs)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.units = units

    def get_config(self):
        return {"units": self.units, "name": self.name}


KINDS = [functional, sequential, Subclassed, SubclassedFunctional]


def is_optimum(model):
    weights = model.get_weights()[0]
    np.testing.assert_allclose(weights, OPTIMUM, atol=1e-5)


@pytest.mark.parametrize("make", KINDS)
def test_fit_batch_is_fit(make, float64):
    model = make()
    model.compile(optimizer="L-BFGS-B", loss="mse")
    history = model.fit_batch(X, Y, epochs=50, verbose=0)
    assert history.result.success
    assert model.history is history
    is_optimum(model)
    losses = history.history["loss"]
    again = make()
    again(X[:1])
    again.set_weights([np.zeros((5, 1))])
    model.set_weights([np.zeros((5, 1))])
    again.compile(optimizer="l-bfgs-b", loss="mse")
    assert (
        again.fit(X, Y, epochs=50, verbose=0).history["loss"]
        == model.fit_batch(X, Y, epochs=50, verbose=0).history["loss"]
    )
    assert losses[-1] == pytest.approx(np.mean((X @ OPTIMUM - Y) ** 2))


@pytest.mark.parametrize("make", KINDS)
def test_fit_batch_with_a_stochastic_optimizer_compiled(make, float64):
    model = make()
    model.compile(optimizer="adam", loss="mse")
    assert set(model.fit(X, Y, verbose=0).history) == {"loss"}
    assert model.fit_batch(X, Y, epochs=50, verbose=0).result.success
    is_optimum(model)


@pytest.mark.parametrize("make", KINDS)
def test_save_and_load(make, tmp_path, unconverged, float64):
    model = make()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit_batch(X, Y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    loaded.fit_batch(X, Y, epochs=50, verbose=0)
    is_optimum(loaded)


@pytest.mark.parametrize("make", [functional, sequential, Subclassed])
def test_clone(make, float64):
    model = make()
    model(X[:1])
    clone = keras.models.clone_model(model)
    clone.compile(optimizer="l-bfgs-b", loss="mse")
    # Keras clones any sequential model as a `keras.Sequential`: `fit` stays.
    fit = clone.fit if make is sequential else clone.fit_batch
    assert fit(X, Y, epochs=50, verbose=0).result.success
    is_optimum(clone)


def test_functional_use_leaves_the_class_to_be_subclassed():
    functional()
    inputs, outputs = graph()
    BatchOptimizedModel(inputs=inputs, outputs=outputs)
    BatchOptimizedModel(inputs, outputs=outputs, name="mixed")

    class Plain(BatchOptimizedModel):
        pass

    # Functional use of subclasses, by argument and by `super().__init__`.
    assert Plain(inputs, outputs=outputs).count_params() == 5
    assert Plain(*graph()).count_params() == 5
    assert SubclassedFunctional(units=2).count_params() == 10

    class Later(BatchOptimizedModel):
        def __init__(self):
            super().__init__(name="later")
            self.dense = layers.Dense(1, use_bias=False)

        def call(self, inputs):
            return self.dense(inputs)

    for model in (Later(), Subclassed()):
        assert model(X[:3]).shape == (3, 1)
        assert not hasattr(model, "inputs")
    assert BatchOptimizedModel.__bases__[-1] is keras.Model
    assert BatchOptimizedSequentialModel.__bases__[-1] is keras.Sequential


def test_arguments_beyond_those_of_keras(float64):
    model = functional()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    frozen = []
    history = model.fit_batch(
        X,
        Y,
        epochs=50,
        verbose=0,
        method="cg",
        tol=1e-7,
        pretrain_fn=frozen.append,
    )
    assert history.result.success
    assert frozen == [model]
    is_optimum(model)
    with pytest.raises(ValueError, match="Received: .*workers"):
        model.fit_batch(X, Y, workers=2)


def test_the_default_is_twenty_epochs(unconverged):
    model = kormos.models.BatchOptimizedSequentialModel(
        [keras.Input((5,)), layers.Dense(8, "tanh"), layers.Dense(1)]
    )
    model.compile(optimizer="l-bfgs-b", loss="mse")
    assert model.fit_batch(X, Y, verbose=0).result.iterations == 20


@pytest.mark.parametrize(
    "theta",
    [np.ones(5), np.ones(2), [0.0, 0.0], list(np.ones(2)), [np.ones((5, 1))]],
    ids=["vector", "two", "numbers", "scalars", "weights"],
)
def test_parameters_are_no_weights_of_an_optimizer(theta, unconverged):
    model = functional()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit(X, Y, epochs=2, verbose=0)
    optimizer, weights = model.optimizer, model.get_weights()
    with pytest.raises(ValueError, match=r"kormos\.Objective.*assign\(theta\)"):
        optimizer.set_weights(theta)
    assert int(optimizer.iterations.numpy()) == 2
    np.testing.assert_array_equal(model.get_weights()[0], weights[0])
    # It sets the optimizer's own variables, as in Keras.
    own = [variable.numpy() for variable in optimizer.variables]
    model.fit(X, Y, epochs=1, verbose=0)
    optimizer.set_weights(own)
    assert int(optimizer.iterations.numpy()) == 2
