"""`optimizer="auto"`: the method is chosen when a fit begins."""

import keras
import numpy as np
import pytest

import kormos
from kormos.inspection import choice as choices


def model_of(width, loss="mse", **settings):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(width, "tanh", **settings),
            keras.layers.Dense(1),
        ]
    )
    model.compile("auto", loss)
    return model


def rows(count=50):
    x = np.random.default_rng(0).normal(size=(count, 3)).astype("float32")
    return x, np.sin(x[:, :1]) + x[:, 1:2]


def test_a_small_model_with_residuals_gets_least_squares(capsys):
    history = model_of(4).fit(*rows(), epochs=15, verbose=1)
    result = history.result
    assert result.choice.startswith("'lm' was chosen. ")
    assert result.stages[0].name == "lm"
    assert result.choice in capsys.readouterr().out


def test_a_large_model_gets_little_memory():
    history = model_of(3_000).fit(*rows(), epochs=2, verbose=0)
    assert history.result.stages[0].name == "lbfgs"
    assert "parameters" in history.result.choice


def test_kinks_get_a_method_that_solves_them_exactly():
    model = model_of(4, kernel_regularizer=keras.regularizers.L1(0.1))
    history = model.fit(*rows(), epochs=40, verbose=0)
    assert history.result.stages[0].name in ("lbfgs", "ssbroyden")
    kernel = np.array(model.trainable_variables[0])
    assert (kernel == 0).any()


def test_slow_evaluations_get_adam_first(monkeypatch):
    monkeypatch.setattr(choices, "_SLOW", 0.0)
    model = model_of(3_000)
    history = kormos.fit(model, *rows(400), epochs=8, verbose=0)
    names = [stage.name for stage in history.result.stages]
    assert names[0].startswith("adam") and names[1] == "lbfgs"


def test_constraints_get_a_method_that_takes_them():
    model = model_of(4)
    bias = model.trainable_variables[-1]
    constraint = {"type": "eq", "fun": lambda: keras.ops.sum(bias) - 1}
    history = model.fit(*rows(), epochs=60, verbose=0, constraints=constraint)
    assert history.result.stages[0].name == "lbfgs"
    assert float(np.array(bias)[0]) == pytest.approx(1, abs=1e-4)


def test_functions_and_residuals_get_theirs(float64):
    v = keras.Variable([3.0, -2.0], dtype="float64")
    result = kormos.least_squares(lambda: v - 1, [v], "auto", verbose=0)
    assert result.stages[0].name == "lm"
    np.testing.assert_allclose(np.array(v), 1)
    v.assign([3.0, -2.0])
    result = kormos.minimize(
        lambda: keras.ops.sum((v - 1) ** 4), [v], "auto", verbose=0
    )
    assert result.stages[0].name in ("lbfgs", "ssbroyden")
    assert result.success and "was chosen" in result.choice


def test_nothing_outside_bounds_is_evaluated_for_the_choice(float64):
    seen = []
    v = keras.Variable([3.0], dtype="float64")

    def loss():
        seen.append(1)
        # NaN outside the box.
        return keras.ops.sum(keras.ops.sqrt(1 - v) + v**2)

    result = kormos.minimize(
        loss, [v], "auto", bounds=[(v, (-1.0, 0.5))], verbose=0
    )
    assert result.success
    # The derivative 2 v - 1 / (2 sqrt(1 - v)) is zero there.
    root = float(np.array(v)[0])
    assert 2 * root == pytest.approx(1 / (2 * np.sqrt(1 - root)), rel=1e-5)


def test_it_is_saved_and_loaded(tmp_path):
    model = model_of(4)
    model.fit(*rows(), epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.name == "auto"
    assert loaded.fit(*rows(), epochs=2, verbose=0).result.choice


@pytest.mark.parametrize(
    "loss, outputs",
    [
        ("binary_crossentropy", 1),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), 3),
        ("poisson", 1),
    ],
)
def test_a_loss_of_classes_or_counts_gets_no_least_squares(loss, outputs):
    keras.utils.set_random_seed(0)
    activation = {"binary_crossentropy": "sigmoid", "poisson": "exponential"}
    layer = keras.layers.Dense(
        outputs, activation.get(loss) if outputs == 1 else None
    )
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("auto", loss)
    x, _ = rows()
    history = model.fit(x, np.arange(50) % 2, epochs=3, verbose=0)
    assert history.result.stages[0].name in ("lbfgs", "ssbroyden")
    report = kormos.check(model, x, np.arange(50) % 2)
    assert report.method in ("lbfgs", "ssbroyden")


@pytest.mark.parametrize(
    "layer",
    [keras.layers.BatchNormalization, lambda: keras.layers.Dropout(0.3)],
)
def test_layers_in_training_mode_get_no_least_squares(layer):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            layer(),
            keras.layers.Dense(1),
        ]
    )
    model.compile("auto", "mse")
    history = model.fit(*rows(), epochs=2, verbose=0, training=True)
    assert history.result.stages[0].name != "lm"


def test_another_choice_continues_from_the_weights():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, "tanh"),
            keras.layers.Dense(1),
        ]
    )
    optimizer = kormos.optimizers.Auto()
    model.compile(optimizer, loss="mse")
    first = model.fit(x, y, epochs=5, verbose=0).result
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss)
    classes = (y > 0).astype("float32")
    before = model.evaluate(x, classes, verbose=0)
    result = model.fit(x, classes, epochs=5, resume=True, verbose=0).result
    assert result.choice != first.choice
    assert result.initial_loss == pytest.approx(before, rel=1e-5)
    assert result.loss < before
