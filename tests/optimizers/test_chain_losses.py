"""Stages of a chain that evaluate the loss in their own way."""

import keras
import numpy as np
import pytest

import kormos
from interrupted import check_goes_on
from kormos.optimizers import LBFGS
from kormos.optimizers import Chain


def regression(seed=0, rows=60):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype("float32")
    return x, rng.normal(size=(rows, 1)).astype("float32")


def linear(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, use_bias=False)]
    )


def least_loss(x, y):
    """The smallest mean of squares, by NumPy in float64."""
    x, y = x.astype("float64"), y.astype("float64")
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    return np.mean((x @ best - y) ** 2)


def two_outputs(seed=0):
    """A constant for each of two outputs, from the same parameter."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((1,))
    shared = keras.layers.Dense(1, use_bias=False)(inputs)
    one = keras.layers.Identity(name="one")(shared)
    two = keras.layers.Identity(name="two")(shared)
    return keras.Model(inputs, {"one": one, "two": two})


TARGETS = {"one": np.full((8, 1), 1.0), "two": np.full((8, 1), 5.0)}
ONES = np.ones((8, 1))


def weighted_mean(one, two):
    """The minimizer w of `one (w - 1)^2 + two (w - 5)^2`."""
    return (one * 1 + two * 5) / (one + two)


def weighted_loss(w, one, two):
    return one * (w - 1) ** 2 + two * (w - 5) ** 2


def parameter(model):
    return float(np.array(model.trainable_variables[0])[0, 0])


@pytest.mark.parametrize("first", ["lbfgs", "adam"])
def test_a_float32_stage_and_a_float64_stage_end_where_float64_does(first):
    x, y = regression()
    model = linear()
    chain = Chain(
        [first, "lbfgs"], epochs=[8, 30], precision=["float32", "float64"]
    )
    model.compile(chain, "mse")
    history = model.fit(x, y, verbose=0)
    alone = linear()
    alone.compile("lbfgs", "mse")
    whole = alone.fit(x, y, epochs=60, precision="float64", verbose=0)
    expected = least_loss(x, y)
    assert history.history["loss"][-1] == pytest.approx(expected, rel=1e-12)
    assert whole.history["loss"][-1] == pytest.approx(expected, rel=1e-12)
    # The first stage computes what a fit in float32 does.
    narrow = linear()
    narrow.compile(Chain([first], epochs=[8]), "mse")
    losses = narrow.fit(x, y, verbose=0).history["loss"]
    assert history.history["loss"][: len(losses)] == losses


def test_a_precision_of_none_is_that_of_the_fit():
    x, y = regression()
    one, two = linear(), linear()
    one.compile(Chain(["lbfgs", "lm"], epochs=[5, 3]), "mse")
    chain = Chain(["lbfgs", "lm"], epochs=[5, 3], precision=["float64", None])
    two.compile(chain, "mse")
    first = one.fit(x, y, precision="float64", verbose=0)
    second = two.fit(x, y, precision="float64", verbose=0)
    assert first.history["loss"] == second.history["loss"]


def test_functions_go_on_in_float64_too():
    v = keras.Variable(np.array([3.0, -1.0], "float32"))
    # The minimum is 1/3, which float32 holds to 1e-8.
    chain = Chain(
        ["lbfgs", LBFGS(gtol=1e-13)],
        epochs=[20, 20],
        precision=["float32", "float64"],
    )

    def loss_fn():
        return keras.ops.sum(keras.ops.square(3 * v - 1)) + 1.0

    result = kormos.minimize(loss_fn, [v], chain, verbose=0)
    assert result.loss == pytest.approx(1.0, rel=1e-15)
    x, y = regression()

    def residual_fn(data):
        return keras.ops.matmul(data["x"], w) - data["y"]

    w = keras.Variable(np.zeros((3, 1), "float32"))
    chain = Chain(
        ["lm", "lm"], epochs=[1, 20], precision=["float32", "float64"]
    )
    result = kormos.least_squares(
        residual_fn, [w], chain, data={"x": x, "y": y}, verbose=0
    )
    # A residual's loss is its square.
    expected = least_loss(x, y)
    assert result.loss == pytest.approx(expected, rel=1e-12)


def test_loss_weights_of_the_second_stage_decide_where_a_fit_ends():
    model = two_outputs()
    model.compile(
        Chain(
            ["lbfgs", "lbfgs"],
            epochs=[20, 20],
            loss_weights=[None, {"one": 3.0, "two": 1.0}],
        ),
        loss={"one": "mse", "two": "mse"},
        loss_weights={"one": 1.0, "two": 3.0},
    )
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found = self.model.evaluate(
                ONES, TARGETS, verbose=0, return_dict=True
            )
            seen.append((logs["stage"], logs["loss"], found["loss"]))

    history = model.fit(ONES, TARGETS, verbose=0, callbacks=[Watch()])
    first, second = weighted_mean(1, 3), weighted_mean(3, 1)
    assert parameter(model) == pytest.approx(second, rel=1e-5)
    ends = [stage.loss for stage in history.result.stages]
    expected = [weighted_loss(first, 1, 3), weighted_loss(second, 3, 1)]
    assert ends == pytest.approx(expected, rel=1e-5)
    for _, told, evaluated in seen:
        assert told == pytest.approx(evaluated, rel=1e-5)
    assert {stage for stage, *_ in seen} == {0, 1}
    # The first step of the second stage lowers the loss of that stage.
    start = weighted_loss(first, 3, 1)
    assert next(told for stage, told, _ in seen if stage == 1) <= start
    # And the model is compiled as it was.
    after = model.evaluate(ONES, TARGETS, verbose=0, return_dict=True)["loss"]
    assert after == pytest.approx(weighted_loss(second, 1, 3), rel=1e-5)


def test_keras_own_stage_trains_with_the_weights_of_the_stage():
    model = two_outputs()
    first = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            first.append(parameter(self.model))

    targets = [TARGETS["one"], TARGETS["two"]]
    model = keras.Model(model.inputs, list(model.outputs))
    model.compile(
        Chain(
            [keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05)],
            epochs=[100, 100],
            loss_weights=[[1.0, 3.0], [3.0, 1.0]],
        ),
        loss=["mse", "mse"],
    )
    model.fit(ONES, targets, verbose=0, callbacks=[Watch()])
    assert first[99] == pytest.approx(weighted_mean(1, 3), rel=1e-5)
    assert first[-1] == pytest.approx(weighted_mean(3, 1), rel=1e-5)


def test_blocks_of_residuals_have_the_weights_of_the_stage():
    v = keras.Variable(np.array([0.0], "float32"))
    chain = Chain(
        ["lm", "lm"],
        epochs=[10, 10],
        loss_weights=[None, {"one": 3.0}],
    )
    result = kormos.least_squares(
        lambda: {"one": v - 1.0, "two": v - 5.0},
        [v],
        chain,
        loss_weights={"two": 3.0},
        verbose=0,
    )
    ends = [stage.loss for stage in result.stages]
    first, second = weighted_mean(1, 3), weighted_mean(3, 1)
    expected = [weighted_loss(first, 1, 3), weighted_loss(second, 3, 1)]
    assert ends == pytest.approx(expected, rel=1e-6)
    assert float(np.array(v)[0]) == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize("at", [2, 3, 4, 6])
def test_an_interrupted_chain_goes_on_with_the_loss_of_its_stage(at, tmp_path):
    x, y = regression()
    y = {"one": y, "two": 1 + 2 * y}

    def fitted(*callbacks):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        hidden = keras.layers.Dense(3, "tanh")(inputs)
        model = keras.Model(
            inputs,
            {
                name: keras.layers.Dense(1, name=name)(hidden)
                for name in ("one", "two")
            },
        )
        chain = Chain(
            ["adam", "lbfgs", "lm"],
            epochs=[3, 3, 3],
            precision=["float32", "float64", None],
            loss_weights=[None, {"one": 9.0, "two": 1.0}, [1.0, 5.0]],
        )
        model.compile(chain, {"one": "mse", "two": "mse"})
        backup = kormos.callbacks.BackupAndRestore(tmp_path / "backup")
        model.fit(x, y, verbose=0, callbacks=[backup, *callbacks])
        return [np.array(w) for w in model.get_weights()]

    check_goes_on(fitted, at)


def test_new_rows_stay_when_a_stage_goes_on_in_float64():
    x, y = regression()
    others = regression(seed=1)
    model = linear()
    chain = Chain(
        ["lbfgs", "lbfgs"], epochs=[6, 40], precision=["float32", "float64"]
    )
    model.compile(chain, "mse")
    resample = kormos.callbacks.Resample(lambda count, rng: others, every=4)
    # None is drawn in the second stage.
    resample.is_due = lambda iteration: iteration == 4
    resample.next_after = lambda iteration: 4 if iteration < 4 else 10**9
    history = model.fit(x, y, verbose=0, callbacks=[resample])
    expected = least_loss(*others)
    assert history.history["loss"][-1] == pytest.approx(expected, rel=1e-12)


def test_a_chain_with_losses_of_its_own_is_saved_and_loaded(tmp_path):
    model = two_outputs()
    weights = [None, {"one": 3.0, "two": 1.0}]
    model.compile(
        Chain(
            ["lbfgs", "lbfgs"],
            epochs=[2, 20],
            precision=["float32", "float64"],
            loss_weights=weights,
        ),
        loss={"one": "mse", "two": "mse"},
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.precision == ["float32", "float64"]
    assert loaded.optimizer.loss_weights == weights
    loaded.fit(ONES, TARGETS, verbose=0)
    assert parameter(loaded) == pytest.approx(weighted_mean(3, 1), rel=1e-6)


class _Stop(Exception):
    pass


def test_an_error_in_a_stage_leaves_the_model_compiled_as_it_was():
    model = two_outputs()
    model.compile(
        Chain(["lbfgs"], loss_weights={"one": 3.0, "two": 1.0}),
        loss={"one": "mse", "two": "mse"},
    )

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise _Stop

    with pytest.raises(_Stop):
        model.fit(ONES, TARGETS, verbose=0, callbacks=[Stop()])
    after = model.evaluate(ONES, TARGETS, verbose=0, return_dict=True)["loss"]
    expected = weighted_loss(parameter(model), 1, 1)
    assert after == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, "must be 'float32', 'float64'"),
        ({"precision": ["float64"]}, "each of the 2"),
        ({"loss_weights": [{"one": 1.0}]}, "each of the 2"),
    ],
)
def test_what_no_stage_can_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Chain(["lbfgs", "lm"], **settings)


def test_what_a_function_cannot_change_is_refused_before_any_work():
    v = keras.Variable(np.ones(2), dtype="bfloat16")

    def loss_fn():
        return keras.ops.sum(v**2)

    chain = Chain(["lbfgs", "lbfgs"], loss_weights=[None, {"one": 2.0}])
    with pytest.raises(ValueError, match="cannot be used in `kormos.minimize`"):
        kormos.minimize(loss_fn, [v], chain)
    narrow = Chain(["lbfgs", "lbfgs"], precision=[None, "float32"])
    with pytest.raises(ValueError, match="variables of bfloat16"):
        kormos.minimize(loss_fn, [v], narrow)

    class Paraboloid:
        size = 2

        def value_and_grad(self, theta):
            return (theta**2).sum(), 2 * theta

    with pytest.raises(ValueError, match="cannot be used in `kormos.solve`"):
        kormos.solve(Paraboloid(), np.ones(2), narrow)
    left = keras.ops.convert_to_numpy(keras.ops.cast(v, "float32"))
    np.testing.assert_array_equal(left, np.ones(2))
