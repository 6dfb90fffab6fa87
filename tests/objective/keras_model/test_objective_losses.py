"""The objective's value is what `evaluate` reports, for any loss."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from compiled_models import ROWS
from compiled_models import Y2
from compiled_models import W
from compiled_models import X
from compiled_models import Y
from compiled_models import assert_equals_evaluate
from compiled_models import one
from compiled_models import squared_error
from compiled_models import two
from kormos.objective.keras_model.split_loss import SplitLoss

pytestmark = pytest.mark.usefixtures("float64")

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
RANDOM = np.random.RandomState(1)
STEPS = RANDOM.normal(size=(ROWS, 3, 1))
STEP_WEIGHTS = RANDOM.uniform(0, 2, (ROWS, 3))


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


def scalar_error(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred))


# Kinds of losses


class OwnCall(keras.losses.Loss):
    """A loss with its own reduction, to twice the mean."""

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
        # Keras counts only the first of several losses of one output.
        ["mse", "mae"],
    ],
    ids=lambda loss: getattr(loss, "__name__", str(loss)),
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


@pytest.mark.parametrize(
    "outputs, loss, y",
    [
        ("list", ["mse", None], Y),
        ("list", [None, "mse"], Y2),
        ("tuple", ("mse", None), Y[:, 0]),
    ],
)
def test_one_array_of_targets_and_as_many_rows_as_outputs(outputs, loss, y):
    model = two(outputs, loss)
    expected = model.evaluate(X, y, batch_size=ROWS, verbose=0)
    # The mean by hand: Keras' own is another one for two rows at once.
    y_pred = model.predict(X, verbose=0)[loss.index("mse")]
    np.testing.assert_allclose(
        expected, np.mean((y_pred - y.reshape(ROWS, -1)) ** 2), rtol=1e-12
    )
    objective = kormos.Objective(model, X, y, batch_size=2)
    value = objective.value(objective.initial_position())
    np.testing.assert_allclose(value, expected, rtol=1e-12)


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
def test_masks(weight):
    assert_equals_evaluate(sequence("mse"), IDS, STEPS, sample_weight=weight)


def test_mask_of_a_loss_that_takes_the_mean_itself():
    assert_equals_evaluate(sequence(scalar_error), IDS, STEPS)


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


def test_weights_may_come_and_go():
    model = one("mse")
    for weight in (None, W, None):
        assert_equals_evaluate(model, X, Y, sample_weight=weight)


def test_a_loss_may_have_no_module():
    # The class of code that was made by `exec` has none.
    def half_square(y_true, y_pred):
        return ops.mean(ops.square(y_pred - y_true), axis=-1) / 2

    half_square.__module__ = None
    assert_equals_evaluate(one(half_square), X, Y)


WEIGHTED = {"reduction": "mean_with_sample_weight"}


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.MeanSquaredError(**WEIGHTED),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=0
        ),
    ],
    ids=["weights", "ignored classes"],
)
def test_divisors_are_counted_again_for_other_values(loss):
    """Arrays of the same shapes have other weights, or ignore other rows."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile(loss=loss)
    is_regression = isinstance(loss, keras.losses.MeanSquaredError)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(12, 2))
        y = rng.normal(size=(12, 3)) if is_regression else seed + np.arange(12)
        y = y if is_regression else np.where(y % 4 <= seed, 0, y % 3)
        w = rng.uniform(size=12) if is_regression else None
        objective = kormos.Objective(model, x, y, sample_weight=w)
        expected = model.evaluate(
            x, y, sample_weight=w, batch_size=12, verbose=0
        )
        value = objective.value(objective.initial_position())
        assert value == pytest.approx(expected, rel=1e-5)


def test_rows_of_the_same_shapes_are_counted_once(monkeypatch):
    """Counting them again would take a pass over all data at each fit."""
    calls, count = [], SplitLoss.count

    def counted(term, *data):
        calls.append(data)
        return count(term, *data)

    monkeypatch.setattr(SplitLoss, "count", counted)
    model = one("mse")
    kormos.Objective(model, X, Y, sample_weight=W, batch_size=2)
    first = len(calls)
    kormos.Objective(model, X + 1, 2 * Y, sample_weight=3 * W, batch_size=2)
    # Chunks of two rows, and a shorter one at the end.
    assert 0 < first <= 2
    assert len(calls) == first
