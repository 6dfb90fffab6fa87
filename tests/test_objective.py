"""The objective's value is what `evaluate` reports, for any model and loss."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos

ROWS = 7
random = np.random.RandomState(0)
X = random.normal(size=(ROWS, 3))
Y = random.normal(size=(ROWS, 1))
Y2 = random.normal(size=(ROWS, 2))
W = random.uniform(0, 2, ROWS)
LABELS = np.array([0, 1, 2, 2, 1, 0, 1])
# Zeros are masked, the fifth row wholly.
IDS = np.array(
    [
        [1, 2, 0],
        [3, 0, 0],
        [1, 1, 1],
        [2, 0, 0],
        [0, 0, 0],
        [2, 3, 0],
        [1, 2, 3],
    ]
)
STEPS = random.normal(size=(ROWS, 3, 1))
STEP_WEIGHTS = random.uniform(0, 2, (ROWS, 3))

pytestmark = pytest.mark.usefixtures("float64")


def assert_equals_evaluate(model, x, y=None, evaluated=None, **weights):
    """Compares chunks of 3, 3 and 1 rows with one batch of `evaluate`."""
    objective = kormos.Objective(model, x, y, batch_size=3, **weights)
    reported = model.evaluate(
        x,
        y,
        batch_size=ROWS,
        verbose=0,
        return_dict=True,
        **(weights if evaluated is None else evaluated),
    )
    value = objective.value(objective.initial_position())
    assert value == pytest.approx(reported["loss"], rel=1e-12)


def one(loss, units=1, loss_weights=None, **kwargs):
    inputs = keras.Input((3,))
    outputs = layers.Dense(units, name="p", **kwargs)(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(loss=loss, loss_weights=loss_weights)
    return model


def two(outputs, loss, loss_weights=None):
    """A model with outputs `p`, one wide, and `q`, two wide."""
    inputs = keras.Input((3,))
    p = layers.Dense(1, name="p")(inputs)
    q = layers.Dense(2, name="q")(inputs)
    outputs = {"list": [p, q], "tuple": (p, q), "dict": {"p": p, "q": q}}[
        outputs
    ]
    model = keras.Model(inputs, outputs)
    model.compile(loss=loss, loss_weights=loss_weights)
    return model


def sequence(loss, units=1, mask_zero=True, **kwargs):
    """A model that predicts from every step of a sequence of numbers."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Embedding(4, 2, mask_zero=mask_zero),
            layers.Dense(units, **kwargs),
        ]
    )
    model.compile(loss=loss)
    return model


def squared_error(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


def scalar_error(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred))


# Kinds of models


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(2, activation="tanh")
        self.drop = layers.Dropout(0.5)
        self.p = layers.Dense(1)

    def call(self, inputs, training=False):
        hidden = self.drop(self.hidden(inputs), training=training)
        return self.p(hidden)


class DictModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = layers.Dense(1)
        self.b = layers.Dense(2)

    def call(self, inputs):
        p = self.a(inputs["u"])
        return {"p": p, "q": p + self.b(inputs["v"])}


def with_moving_averages():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.5),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer="adam", loss="mse")
    norm = model.get_layer("norm")
    norm.moving_mean.assign([1, 2, 3, 4])
    norm.moving_variance.assign([0.1, 0.2, 0.3, 4])
    return model


def test_sequential_with_batch_normalization_and_dropout():
    assert_equals_evaluate(with_moving_averages(), X, Y)


def test_loaded_model(tmp_path):
    model = two("dict", {"p": "mse", "q": keras.losses.Huber()}, [1, 0.3])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    y = {"p": Y, "q": Y2}
    assert_equals_evaluate(loaded, X, y)
    theta = kormos.Objective(model, X, y).initial_position()
    assert kormos.Objective(loaded, X, y).value(theta) == pytest.approx(
        kormos.Objective(model, X, y).value(theta), rel=1e-12
    )


@pytest.mark.parametrize("build", [True, False])
def test_subclassed_model(build):
    model = Subclassed()
    model.compile(loss="mse")
    if build:
        model(X[:1])
    assert_equals_evaluate(model, X, Y)


def test_unbuilt_model_with_dicts():
    model = DictModel()
    model.compile(loss={"p": "mse", "q": "mae"}, loss_weights={"p": 1, "q": 2})
    assert_equals_evaluate(model, {"u": X, "v": Y2}, {"p": Y, "q": Y2})


@pytest.mark.parametrize("structure", ["list", "tuple", "dict"])
def test_several_inputs(structure):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    inputs, x = {
        "list": ([a, b], [X, Y2]),
        "tuple": ((a, b), (X, Y2)),
        "dict": ({"b": b, "a": a}, {"a": X, "b": Y2}),
    }[structure]
    outputs = layers.Dense(1)(layers.Concatenate()([a, b]))
    model = keras.Model(inputs, outputs)
    model.compile(loss="mse")
    assert_equals_evaluate(model, x, Y)


# Kinds of losses


class OwnCall(keras.losses.Loss):
    """Reduces by itself, to twice the mean."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        return 2 * ops.mean(ops.abs(y_true - y_pred))


class EveryNumber(keras.losses.Loss):
    """A loss for each number, not for each row."""

    def call(self, y_true, y_pred):
        return ops.square(y_true - y_pred)


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        squared_error,
        scalar_error,
        keras.losses.LogCosh,
        EveryNumber,
        OwnCall,
        ["mse"],
        {"p": "mse"},
        # Of several losses of one output Keras counts the first.
        ["mse", "mae"],
    ],
    ids=str,
)
def test_losses_of_one_output(loss):
    # A loss keeps the precision in which it was made.
    loss = loss() if isinstance(loss, type) else loss
    assert_equals_evaluate(one(loss, units=2), X, Y2)


@pytest.mark.parametrize("y", [Y[:, 0], Y], ids=["1-D", "2-D"])
@pytest.mark.parametrize("weight", [None, W], ids=["", "weighted"])
def test_targets_without_a_last_dimension(y, weight):
    assert_equals_evaluate(one("mse"), X, y, sample_weight=weight)


@pytest.mark.parametrize(
    "outputs, loss, loss_weights, y",
    [
        ("list", "mse", None, [Y, Y2]),
        ("list", ["mse", squared_error], [1, 0.3], [Y, Y2]),
        ("list", {"q": "mae", "p": "mse"}, {"p": 2, "q": 0.3}, [Y, Y2]),
        ("list", ["mse", None], [2.0, 1.0], [Y, Y2]),
        ("list", ["mse", None], None, [Y]),
        ("tuple", ("mse", "mae"), (1, 0.3), (Y, Y2)),
        ("dict", {"q": "mae", "p": "mse"}, {"q": 3, "p": 1}, {"p": Y, "q": Y2}),
        ("dict", ["mse", "mae"], [1, 0.3], {"p": Y, "q": Y2}),
        ("dict", {"q": "mse"}, None, {"q": Y2}),
    ],
)
def test_losses_of_two_outputs(outputs, loss, loss_weights, y):
    assert_equals_evaluate(two(outputs, loss, loss_weights), X, y)


def test_loss_weight_of_one_output():
    assert_equals_evaluate(one("mse", loss_weights=0.3), X, Y)


@pytest.mark.parametrize(
    "y, units, activation",
    [
        (LABELS, 3, "softmax"),
        (LABELS[:, None], 3, "softmax"),
        (np.eye(3)[LABELS], 3, "softmax"),
        (LABELS > 0, 1, "sigmoid"),
    ],
    ids=["labels", "column", "one-hot", "binary"],
)
def test_crossentropy_means_the_one_that_fits(y, units, activation):
    model = one("crossentropy", units, activation=activation)
    assert_equals_evaluate(model, X, y)


def test_loss_that_reads_a_variable_sees_its_present_value():
    scale = keras.Variable(1.0, trainable=False)

    def scaled(y_true, y_pred):
        return scale * squared_error(y_true, y_pred)

    model = one(scaled)
    objective = kormos.Objective(model, X, Y)
    theta = objective.initial_position()
    before = objective.value(theta)
    scale.assign(3.0)
    again = kormos.Objective(model, X, Y)
    assert again.value(theta) == pytest.approx(3 * before, rel=1e-12)
    assert again.program is objective.program
    objective.refresh()
    assert objective.value(theta) == again.value(theta)


# Terms that layers and models add


class AddsLoss(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.1 * ops.mean(ops.square(inputs)))
        return inputs


def penalized(loss):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, "tanh", False, activity_regularizer="l2"),
            AddsLoss(),
            layers.Dense(1, kernel_regularizer="l1", bias_regularizer="l2"),
        ]
    )
    model.compile(loss=loss)
    return model


@pytest.mark.parametrize("weight", [None, W], ids=["", "weighted"])
def test_regularizers_and_added_losses(weight):
    assert_equals_evaluate(penalized("mse"), X, Y, sample_weight=weight)


def test_added_losses_alone():
    assert_equals_evaluate(penalized(None), X)


class CallsSuper(keras.Model):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return 2 * loss + ops.mean(ops.square(y_pred))


class CallsNothing(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return ops.mean(ops.abs(y - y_pred))


@pytest.mark.parametrize("kind", [CallsSuper, CallsNothing])
def test_model_with_its_own_compute_loss(kind):
    inputs = keras.Input((3,))
    outputs = layers.Dense(1, kernel_regularizer="l2")(inputs)
    model = kind(inputs, outputs)
    model.compile(loss="mse")
    assert_equals_evaluate(model, X, Y)


# Weights, masks and reductions


@pytest.mark.parametrize(
    "reduction", ["mean", "sum", "mean_with_sample_weight", "none", None]
)
def test_reductions(reduction):
    model = one(keras.losses.MeanSquaredError(reduction=reduction))
    assert_equals_evaluate(model, X, Y, sample_weight=W)


def test_sum_is_over_all_data():
    model = one(keras.losses.MeanSquaredError(reduction="sum"))
    objective = kormos.Objective(model, X, Y, batch_size=2)
    residuals = ops.convert_to_numpy(model(X)) - Y
    assert objective.value(objective.initial_position()) == pytest.approx(
        np.sum(residuals**2), rel=1e-12
    )


@pytest.mark.parametrize("weight", [None, STEP_WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize("loss", ["mse", scalar_error])
def test_masks(loss, weight):
    if loss == scalar_error and weight is not None:
        # Such a loss is not a sum over rows: one batch alone is comparable.
        model, kwargs = sequence(loss), {"sample_weight": weight}
        objective = kormos.Objective(model, IDS, STEPS, **kwargs)
        assert objective.value(objective.initial_position()) == pytest.approx(
            model.evaluate(IDS, STEPS, verbose=0, **kwargs), rel=1e-12
        )
        return
    assert_equals_evaluate(sequence(loss), IDS, STEPS, sample_weight=weight)


@pytest.mark.parametrize("mask_zero", [True, False])
def test_ignored_class(mask_zero):
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=2)
    model = sequence(loss, 4, mask_zero, activation="softmax")
    assert_equals_evaluate(model, IDS, IDS[:, ::-1])


@pytest.mark.parametrize(
    "outputs, y, weight",
    [
        ("list", [Y, Y2], W),
        ("list", [Y, Y2], [W, W[::-1]]),
        ("dict", {"p": Y, "q": Y2}, {"p": W, "q": W[::-1]}),
    ],
    ids=["one", "list", "dict"],
)
def test_sample_weights_of_two_outputs(outputs, y, weight):
    assert_equals_evaluate(two(outputs, "mse"), X, y, sample_weight=weight)


@pytest.mark.parametrize("y", [LABELS, np.eye(3)[LABELS]], ids=["", "one-hot"])
def test_class_weights_are_sample_weights(y):
    kind = "sparse_categorical" if y.ndim == 1 else "categorical"
    model = one(f"{kind}_crossentropy", 3, activation="softmax")
    class_weight = {0: 0.5, 2: 3.0}
    weight = np.array([class_weight.get(c, 1.0) for c in LABELS])
    assert_equals_evaluate(
        model,
        X,
        y,
        evaluated={"sample_weight": weight},
        class_weight=class_weight,
    )
