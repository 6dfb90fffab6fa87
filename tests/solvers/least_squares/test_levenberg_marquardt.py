"""Levenberg-Marquardt.

Expected numbers come from linear algebra, SciPy or another fit.
"""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from conftest import TIGHT
from conftest import lindata
from conftest import linear
from kormos.optimizers import LevenbergMarquardt
from kormos.solvers.least_squares import loop
from native import eager_only

pytestmark = pytest.mark.usefixtures("unconverged")
SOLVERS = ["rows", "dense", "cg"]

X, Y = lindata(200, noise=0.3)
RESIDUAL = np.mean((X @ np.linalg.lstsq(X, Y)[0] - Y) ** 2)


def variants(values, compiled):
    """All values on torch, and few where models are slow to compile."""
    return [
        value if value in compiled else pytest.param(value, marks=eager_only)
        for value in values
    ]


def sequential(*stack, inputs=(1,), optimizer="lm", loss="mse", **kwargs):
    model = keras.Sequential([keras.Input(inputs), *stack])
    model.compile(optimizer=optimizer, loss=loss, **kwargs)
    return model


def net(width=5, inputs=(1,), seed=0, **kwargs):
    keras.utils.set_random_seed(seed)
    stack = layers.Dense(width, "tanh"), layers.Dense(1)
    return sequential(*stack, inputs=inputs, **kwargs)


def sinc(rows):
    x = np.linspace(-1, 1, rows)[:, None]
    return x, np.sinc(10 * x / np.pi)


def surface(rows=60, seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (rows, 2))
    return x, (x**2).sum(axis=1, keepdims=True)


def weights(model):
    return np.concatenate([w.reshape(-1) for w in model.get_weights()])


def assert_same_weights(model, before):
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Linear models


@pytest.mark.parametrize("solver", variants(["rows", "dense"], ["rows"]))
def test_linear_least_squares_takes_one_step(solver, float64):
    model = linear()
    model.compile(
        optimizer=LevenbergMarquardt(linear_solver=solver), loss="mse"
    )
    # The first step may be as long as the parameters.
    model.set_weights([np.full((5, 1), 3.0)])
    history = model.fit(X, Y, verbose=0)
    assert history.history["loss"][0] == pytest.approx(RESIDUAL, rel=1e-12)
    assert history.history["damping"][0] == 0
    # Whatever follows is polish.
    assert max(history.history["step"][1:], default=0) <= 1e-12
    assert history.result.success
    np.testing.assert_allclose(
        model.get_weights()[0], np.linalg.lstsq(X, Y)[0], atol=1e-12
    )


@pytest.mark.parametrize("solver", variants(["auto", *SOLVERS], ["auto"]))
def test_ridge(solver, float64):
    model = linear(l2=1e-3)
    model.compile(
        optimizer=LevenbergMarquardt(linear_solver=solver), loss="mse"
    )
    history = model.fit(X, Y, verbose=0)
    assert history.result.success
    assert history.result.loss == pytest.approx(0.0895758670, abs=5e-9)
    matrix = X.T @ X / 200 + 1e-3 * np.eye(5)
    expected = np.linalg.solve(matrix, X.T @ Y / 200)
    np.testing.assert_allclose(
        model.get_weights()[0], expected, atol=max(TIGHT, 1e-10)
    )


def test_rows_of_no_weight_do_not_count(float64):
    model = linear()
    model.compile(optimizer="lm", loss="mse")
    history = model.fit(X, Y, sample_weight=np.arange(200) < 50, verbose=0)
    assert history.result.success
    np.testing.assert_allclose(
        model.get_weights()[0][:, 0],
        [1.66072222, -0.59097524, -0.55480007, -1.09688121, 0.89303383],
        atol=1e-8,
    )


@pytest.mark.parametrize("solver", SOLVERS if BACKEND == "torch" else ["auto"])
def test_a_duplicated_input(solver, float64):
    x = np.concatenate([X, X[:, :2]], axis=1)
    model = linear(7)
    model.compile(
        optimizer=LevenbergMarquardt(linear_solver=solver), loss="mse"
    )
    history = model.fit(x, Y, epochs=50, verbose=0)
    assert history.result.success
    assert history.result.loss == pytest.approx(RESIDUAL, rel=1e-10)
    assert np.abs(weights(model)).max() < 10


@pytest.mark.parametrize("solver", variants(["rows", "dense"], ["rows"]))
def test_fewer_rows_than_parameters(solver, float64):
    x, y = sinc(8)
    model = net(20, optimizer=LevenbergMarquardt(linear_solver=solver))
    history = model.fit(x, y, epochs=60, verbose=0)
    # Eight numbers, which sixty parameters can fit exactly.
    assert history.result.loss <= 1e-12


def test_wide_data(float64):
    """JJ' in place of J'J, for a J too large for singular values."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 600)), rng.normal(size=(150, 1))
    model = linear(600)
    model.compile(optimizer="lm", loss="mse")
    history = model.fit(x, y, epochs=50, verbose=0)
    assert "JJ'" in history.result.message
    assert history.result.loss <= 1e-20
    # The shortest way there, as the columns' norms measure it.
    start, norms = np.ones((600, 1)), np.linalg.norm(x, axis=0)
    expected = start + (
        np.linalg.lstsq(x / norms, y - x @ start)[0] / norms[:, None]
    )
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-8)


@pytest.mark.parametrize("solver", variants(SOLVERS, ["rows"]))
def test_bounds(solver, float64):
    model = linear()
    lower, upper = np.array([0, -0.1, -0.3, -2, 0.2]), np.full(5, 1.0)
    model.compile(
        optimizer=LevenbergMarquardt(
            linear_solver=solver,
            bounds={".*kernel": (lower[:, None], upper[:, None])},
        ),
        loss="mse",
    )
    history = model.fit(X, Y, epochs=100, verbose=0)
    kernel = model.get_weights()[0][:, 0]
    assert (lower <= kernel).all() and (kernel <= upper).all()
    expected = scipy.optimize.lsq_linear(X, Y[:, 0], (lower, upper), tol=1e-14)
    np.testing.assert_allclose(kernel, expected.x, atol=1e-6)
    assert history.result.loss == pytest.approx(expected.cost / 100, rel=1e-9)


def test_bounds_of_correlated_inputs(float64):
    x = X @ np.linalg.cholesky(0.9 + 0.1 * np.eye(5)).T
    lower, upper = np.full(5, -0.5), np.full(5, 0.7)
    model = linear()
    model.compile(
        optimizer=LevenbergMarquardt(bounds={".*": (-0.5, 0.7)}), loss="mse"
    )
    model.fit(x, Y, epochs=200, verbose=0)
    kernel = model.get_weights()[0][:, 0]
    assert (lower <= kernel).all() and (kernel <= upper).all()
    expected = scipy.optimize.lsq_linear(x, Y[:, 0], (lower, upper), tol=1e-14)
    np.testing.assert_allclose(kernel, expected.x, atol=1e-6)


def test_bounds_of_a_network(float64):
    x, y = surface()
    model = net(inputs=(2,))
    history = kormos.fit(
        model, x, y, epochs=30, verbose=0, bounds={".*kernel": (-0.5, 0.5)}
    )
    for kernel in model.get_weights()[::2]:
        assert np.abs(kernel).max() <= 0.5
    assert history.result.loss < history.result.initial_loss
    assert (np.diff(history.history["loss"]) <= 0).all()


# Networks


@pytest.mark.slow
def test_sinc(float64):
    x, y = sinc(2000)
    model = net(20)
    history = model.fit(x, y, epochs=100, verbose=0)
    assert history.result.loss <= 1e-8
    assert (np.diff(history.history["loss"]) <= 0).all()
    assert np.mean((model.predict(x, verbose=0) - y) ** 2) == pytest.approx(
        history.result.loss, rel=1e-6
    )


@pytest.mark.slow
def test_sinc_in_float32():
    x, y = sinc(2000)
    history = net(20).fit(x, y, epochs=100, verbose=0)
    assert history.result.loss <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20 if BACKEND == "torch" else 3))
def test_no_iteration_after_adam_raises_the_loss(seed):
    x, y = sinc(300)
    model = net(20, seed=seed, optimizer=keras.optimizers.Adam(0.01))
    model.fit(x, y, epochs=100, batch_size=300, verbose=0)
    before = model.evaluate(x, y, verbose=0)
    history = kormos.fit(model, x, y, optimizer="lm", epochs=15, verbose=0)
    losses = [history.result.initial_loss, *history.history["loss"]]
    assert losses[0] == pytest.approx(before, rel=1e-5)
    assert (np.diff(losses) <= 0).all()
    assert losses[-1] < 0.5 * losses[0]
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        losses[-1], rel=1e-4
    )


def test_weights_set_between_fits_count():
    x, y = sinc(100)
    model = net()
    start = model.get_weights()
    first = model.fit(x, y, epochs=5, verbose=0)
    model.set_weights(start)
    second = model.fit(x, y, epochs=5, verbose=0)
    assert second.history["loss"] == first.history["loss"]
    model.set_weights([0.5 * w for w in start])
    loss = model.evaluate(x, y, verbose=0)
    third = model.fit(x, y, epochs=5, verbose=0)
    assert third.result.initial_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision", variants(["float32", "float64"], ["float32"])
)
def test_a_fit_after_a_fit_goes_on(precision):
    """Also near a minimum, where differences of the loss are rounding."""
    x, y = sinc(300)
    with kormos.precision(precision):
        for seed in range(2):
            model, losses = net(10, seed=seed), []
            for _ in range(3):
                history = model.fit(x, y, epochs=40, verbose=0)
                losses += [history.result.initial_loss, history.result.loss]
            tolerance = 1e-5 if precision == "float32" else 1e-9
            assert (np.diff(losses) <= tolerance * losses[0]).all()


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, "tanh")
        self.out = layers.Dense(1)

    def call(self, inputs):
        return self.out(self.hidden(inputs))


class OwnLoss(Unbuilt):
    """A model whose own loss is half the mean squared error."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return ops.mean((y - y_pred) ** 2) / 2


RNG = np.random.default_rng(0)
X3 = RNG.normal(size=(40, 3))


def many_outputs():
    model = sequential(layers.Dense(3, "tanh"), layers.Dense(120), inputs=(3,))
    return model, X3, RNG.normal(size=(40, 120))


def two_outputs():
    inputs = keras.Input((3,))
    hidden = layers.Dense(3, "tanh")(inputs)
    names = ("p", "q")
    outputs = {n: layers.Dense(1, name=n)(hidden) for n in names}
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer="lm",
        loss={"p": "mse", "q": "huber"},
        loss_weights={"p": 2.0, "q": 1.0},
    )
    return model, X3, {"p": X3[:, :1] ** 2, "q": np.sin(X3[:, 1:2])}


def two_inputs():
    pair = [keras.Input((1,)), keras.Input((2,))]
    hidden = layers.Dense(4, "tanh")(layers.concatenate(pair))
    model = keras.Model(pair, layers.Dense(1)(hidden))
    model.compile(optimizer="lm", loss="mse")
    return model, [X3[:, :1], X3[:, 1:]], np.sin(X3[:, :1] * X3[:, 1:2])


def flat_targets():
    return net(inputs=(3,)), X3, np.sin(X3[:, 0])


def normalized():
    normalize = layers.Normalization()
    normalize.adapt(100 + 30 * X3)
    stack = normalize, layers.Dense(3, "tanh"), layers.Dense(1)
    model = sequential(*stack, inputs=(3,))
    return model, 100 + 30 * X3, np.sin(X3[:, :1])


def recurrent():
    model = sequential(layers.LSTM(2), layers.Dense(1), inputs=(3, 1))
    return model, X3[:, :, None], np.sin(X3[:, :1] + X3[:, 1:2])


def convolutional():
    stack = (
        layers.Conv2D(2, 3, activation="tanh"),
        layers.Flatten(),
        layers.Dense(1),
    )
    images = RNG.normal(size=(40, 5, 5, 1))
    model = sequential(*stack, inputs=(5, 5, 1))
    return model, images, images.max(axis=(1, 2))


def unbuilt(kind=Unbuilt):
    model = kind()
    model.compile(optimizer="lm", loss="mse")
    return model, X3, np.sin(X3[:, :1])


def own_loss():
    return unbuilt(OwnLoss)


def classes():
    model = sequential(
        layers.Dense(4, "tanh"),
        layers.Dense(3, "softmax"),
        inputs=(3,),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model, X3, np.argmax(X3, axis=1)


MODELS = [
    many_outputs,
    two_outputs,
    two_inputs,
    flat_targets,
    normalized,
    recurrent,
    convolutional,
    unbuilt,
    own_loss,
    classes,
]
COMPILED = [two_outputs, normalized, recurrent, convolutional, own_loss]


@pytest.mark.parametrize("make", variants(MODELS, COMPILED))
def test_models(make):
    model, x, y = make()
    history = model.fit(x, y, epochs=3, verbose=0)
    losses = [history.result.initial_loss, *history.history["loss"]]
    assert len(losses) == 4
    assert (np.diff(losses) < 0).all()
    reported = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert reported == pytest.approx(losses[-1], rel=1e-4)


def test_the_reported_loss_is_the_models_own(float64):
    model, x, y = own_loss()
    history = model.fit(x, y, epochs=3, verbose=0)
    error = model.predict(x, verbose=0) - y
    assert history.result.loss == pytest.approx(np.mean(error**2) / 2)


# Losses


@pytest.mark.parametrize("linear_solver", ["rows", "dense"])
def test_where_a_loss_is_straight_it_goes_downhill(
    float64, unconverged, linear_solver
):
    def half_hinge(y, outputs):
        hinge = ops.relu(1 - y[:, 1] * outputs[:, 1])
        return ops.square(y[:, 0] - outputs[:, 0]) + hinge

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = np.stack([2 * x[:, 0] + 1, np.sign(x[:, 1])], axis=1)
    model = sequential(layers.Dense(2), inputs=(2,))
    method = LevenbergMarquardt(linear_solver=linear_solver)
    model.compile(optimizer=method, loss=half_hinge)
    history = model.fit(x, y, epochs=30, verbose=0)
    # The parabola is at its minimum after one step, the hinge is not.
    assert history.result.loss < history.result.initial_loss / 10
    assert not history.result.success or history.history["grad"][-1] < 1e-6


@pytest.mark.parametrize("loss", ["mae", "hinge", "dice"])
def test_losses_without_curvature_are_refused(loss):
    x, y = sinc(20)
    model = net(loss=loss)
    before, calls = model.get_weights(), []
    callback = keras.callbacks.LambdaCallback(on_train_begin=calls.append)
    with pytest.raises(ValueError, match=f"Received: .*{loss}"):
        model.fit(x, abs(y), verbose=0, callbacks=[callback])
    assert calls == []
    assert_same_weights(model, before)


def test_batch_normalization_in_training_is_refused():
    stack = layers.Dense(4), layers.BatchNormalization(), layers.Dense(1)
    model = sequential(*stack, inputs=(2,))
    x, y = surface()
    before = model.get_weights()
    with pytest.raises(ValueError, match="normalization in training"):
        kormos.fit(model, x, y, verbose=0, training=True)
    assert_same_weights(model, before)
    # With its moving averages it is like any other layer.
    history = model.fit(x, y, epochs=2, verbose=0)
    assert history.result.loss < history.result.initial_loss


def test_reductions_take_the_same_iterates(float64):
    x, y = sinc(50)
    found = []
    for reduction in ("mean", "sum", "mean_with_sample_weight", "none"):
        if BACKEND != "torch" and reduction not in ("mean", "sum"):
            continue
        loss = keras.losses.MeanSquaredError(reduction=reduction)
        model = net(loss=loss)
        model.fit(x, y, epochs=10, verbose=0)
        found.append(weights(model))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-9)


def test_the_loss_has_no_scale(float64):
    x, y = sinc(50)
    found = []
    for factor in (1.0, 1e-9, 1e9):

        def loss(y_true, y_pred, factor=factor):
            return factor * ops.mean((y_true - y_pred) ** 2, axis=-1)

        model = net(loss=loss)
        history = model.fit(x, y, epochs=10, verbose=0)
        losses = np.array(history.history["loss"]) / factor
        found.append((weights(model), losses))
    for other, losses in found[1:]:
        np.testing.assert_allclose(other, found[0][0], rtol=0, atol=1e-8)
        np.testing.assert_allclose(losses, found[0][1], rtol=1e-8)


# Linear solvers, presets, options


def test_solvers_agree_on_the_first_step(float64):
    x, y = sinc(50)
    found = []
    for solver in ("rows", "dense"):
        model = net(optimizer=LevenbergMarquardt(linear_solver=solver))
        history = model.fit(x, y, epochs=1, verbose=0)
        found.append((*history.history["loss"], *weights(model)))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "solver, words",
    [
        ("auto", "singular values of J, 200 x 5"),
        ("dense", "eigenvalues of J'J, 5 x 5"),
        # As many products make the matrix as estimate its diagonal.
        ("cg", "eigenvalues of J'J, 5 x 5"),
    ],
)
def test_the_result_names_the_solver(solver, words, float64):
    model = linear()
    model.compile(
        optimizer=LevenbergMarquardt(linear_solver=solver), loss="mse"
    )
    history = model.fit(X, Y, epochs=50, verbose=0)
    assert words in history.result.message
    assert history.result.success
    np.testing.assert_allclose(
        model.get_weights()[0], np.linalg.lstsq(X, Y)[0], atol=1e-6
    )


def test_conjugate_gradients_solve_a_regression_in_many_units(float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 40))
    right, units = rng.normal(size=(40, 1)), 10 ** rng.uniform(-6, 6, 40)
    y = x @ right + 0.1 * rng.normal(size=(200, 1))
    # Columns whose units differ by factors from 1e-6 to 1e6.
    model = linear(40)
    model.compile(optimizer=LevenbergMarquardt(linear_solver="cg"), loss="mse")
    history = model.fit(x * units, y, epochs=50, verbose=0)
    assert "conjugate gradients" in history.result.message
    assert history.result.success
    least = np.linalg.lstsq(x, y)[1][0] / 200
    np.testing.assert_allclose(history.result.loss, least, rtol=1e-9)
    assert history.result.iterations <= 20


@pytest.mark.slow
def test_conjugate_gradients_fit_a_network(float64):
    x, y = surface()
    model = net(inputs=(2,), optimizer=LevenbergMarquardt(linear_solver="cg"))
    history = model.fit(x, y, epochs=20, verbose=0)
    losses = [history.result.initial_loss, *history.history["loss"]]
    assert (np.diff(losses) <= 0).all()
    assert losses[-1] <= 0.1 * losses[0]
    assert history.history["hessp_evals"][-1] > 0


def test_many_residuals_go_through_the_matrix():
    x, y = sinc(10_000)
    history = net().fit(x, y, epochs=2, verbose=0)
    assert "J'J, 16 x 16" in history.result.message


def test_the_preset_of_matlab(float64):
    x, y = sinc(100)
    model = net(optimizer=LevenbergMarquardt(preset="matlab"))
    history = model.fit(x, y, epochs=30, verbose=0)
    mu = np.array([1e-3, *history.history["damping"]])
    trials = np.array(history.history["trials"])
    # Ten times for a trial that fails, a tenth for the one that does not.
    np.testing.assert_allclose(
        np.log10(mu[1:] / mu[:-1]), trials - 2, atol=1e-9
    )
    assert (np.diff(history.history["loss"]) < 0).all()
    assert history.result.loss < 0.1 * history.result.initial_loss
    assert "radius" not in history.history


def test_the_first_step_of_matlab(float64):
    """It solves (J'J + mu I) p = -J'e, with the errors e."""
    model = linear()
    model.compile(optimizer=LevenbergMarquardt(preset="matlab"), loss="mse")
    model.fit(X, Y, epochs=1, verbose=0)
    start = np.ones((5, 1))
    matrix = X.T @ X + 1e-3 * np.eye(5)
    expected = start - np.linalg.solve(matrix, X.T @ (X @ start - Y))
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-12)


def test_without_acceleration(float64):
    x, y = sinc(100)
    model = net(optimizer=LevenbergMarquardt(acceleration=False))
    history = model.fit(x, y, epochs=20, verbose=0)
    assert history.history["hessp_evals"][-1] == 0
    losses = [history.result.initial_loss, *history.history["loss"]]
    assert (np.diff(losses) <= 0).all()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "octave"},
        {"linear_solver": "qr"},
        {"linear_solver": None},
        {"gtol": -1e-3},
        {"ftol": 1},
        {"xtol": "small"},
    ],
)
def test_invalid_options_raise(options):
    ((name, _),) = options.items()
    with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}="):
        LevenbergMarquardt(**options)


def test_by_name():
    for name in ("lm", "LM"):
        assert type(kormos.optimizers.get(name)) is LevenbergMarquardt
    model = linear()
    model.compile(optimizer="lm", loss="mse")
    assert type(model.optimizer) is LevenbergMarquardt
    with pytest.raises(ValueError, match="does not support constraints"):
        kormos.fit(
            model,
            X,
            Y,
            constraints={"type": "eq", "fun": lambda: model.weights[0][0]},
        )


# The history, limits, ends


def test_history(float64):
    x, y = sinc(100)
    history = net(metrics=["mae"]).fit(x, y, epochs=6, verbose=0)
    rows = history.history
    common = {"loss", "grad", "fg_evals", "hessp_evals"}
    own = {"damping", "radius", "step", "trials"}
    assert set(rows) == common | own | {"mae"}
    assert all(len(column) == 6 for column in rows.values())
    assert min(rows["step"]) > 0 and min(rows["radius"]) > 0
    assert min(rows["damping"]) >= 0 and min(rows["trials"]) >= 1
    assert rows["fg_evals"][-1] == history.result.evaluations
    assert rows["hessp_evals"][-1] == history.result.hessian_products


def test_steps_are_what_the_weights_move_by(float64):
    x, y = sinc(100)
    model, visited = net(), []
    callback = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: visited.append(weights(model))
    )
    start = weights(model)
    history = model.fit(x, y, epochs=4, callbacks=[callback], verbose=0)
    moves = np.diff([start, *visited], axis=0)
    np.testing.assert_allclose(
        np.linalg.norm(moves, axis=1), history.history["step"], rtol=1e-9
    )


def test_limit_on_evaluations():
    x, y = sinc(100)
    history = net().fit(x, y, epochs=100, max_evals=12, verbose=0)
    assert history.result.status == "evaluation limit"
    # The two differ by at most one iterate.
    assert 12 <= history.result.evaluations <= 14


def test_target_loss():
    x, y = sinc(100)
    model = net()
    target = 0.5 * model.evaluate(x, y, verbose=0)
    history = model.fit(x, y, epochs=100, target_loss=target, verbose=0)
    assert history.result.status == "target reached"
    assert history.result.loss <= target
    assert min(history.history["loss"][:-1], default=1.0) > target


class Root(layers.Layer):
    """A layer that is undefined if its only weight is negative."""

    def __init__(self, start):
        super().__init__()
        self.start = start

    def build(self, shape):
        self.rate = self.add_weight(
            shape=(1,), initializer=keras.initializers.Constant(self.start)
        )

    def call(self, inputs):
        return ops.sqrt(ops.convert_to_tensor(self.rate)) * inputs


# At -1 the loss is NaN; at 0 its derivative alone is infinite.
@pytest.mark.parametrize("start", variants([-1.0, 0.0], [-1.0]))
@pytest.mark.parametrize("solver", variants(["auto", "cg"], ["auto"]))
def test_a_start_that_is_not_finite_is_kept(start, solver):
    x, y = sinc(50)
    model = sequential(
        Root(start), optimizer=LevenbergMarquardt(linear_solver=solver)
    )
    history = model.fit(x, y, epochs=5, verbose=0)
    assert history.result.status == "non-finite"
    assert history.result.iterations == 0
    np.testing.assert_array_equal(weights(model), [start])


def test_nan_in_targets_is_refused():
    x, y = sinc(50)
    y[7] = np.nan
    model = net()
    before = model.get_weights()
    with pytest.raises(ValueError, match="the first in row 7"):
        model.fit(x, y, epochs=5, verbose=0)
    assert_same_weights(model, before)


@pytest.mark.parametrize("wall", ["nan", pytest.param("inf", marks=eager_only)])
def test_a_wall_on_the_way(wall, float64):
    class Walled(layers.Layer):
        """A slope that is defined up to 1.001; the data have slope 1."""

        def build(self, shape):
            self.slope = self.add_weight(
                shape=(1,), initializer=keras.initializers.Constant(-3.0)
            )

        def call(self, inputs):
            slope = ops.convert_to_tensor(self.slope)
            outside = ops.full_like(inputs, float(wall))
            return ops.where(slope > 1.001, outside, inputs * slope**3)

    x = np.linspace(0.5, 1, 20)[:, None]
    model = sequential(Walled())
    history = model.fit(x, x, epochs=100, verbose=0)
    losses = [history.result.initial_loss, *history.history["loss"]]
    assert (np.diff(losses) <= 0).all()
    assert history.result.success
    np.testing.assert_allclose(weights(model), 1, atol=1e-6)


def test_at_the_minimum_it_stays(float64):
    model = linear()
    model.compile(optimizer="lm", loss="mse")
    model.set_weights([np.ones((5, 1))])
    history = model.fit(X, X @ np.ones((5, 1)), verbose=0)
    assert history.result.success
    assert history.result.loss <= 1e-30
    np.testing.assert_allclose(model.get_weights()[0], 1, atol=1e-14)


def test_exact_data_end_at_once(float64):
    model = linear()
    model.compile(optimizer="lm", loss="mse")
    history = model.fit(X, X @ np.arange(5.0)[:, None], epochs=50, verbose=0)
    assert history.result.success
    assert history.result.loss <= 1e-28
    np.testing.assert_allclose(
        model.get_weights()[0][:, 0], np.arange(5), atol=1e-13
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_exact_data_with_a_loss_that_is_coarse_near_zero(dtype):
    """The terms of Keras' log-cosh are about log 2, and round so."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(50, 5)).astype(dtype)
    y = 1e-3 * x @ np.arange(5.0, dtype=dtype)[:, None]
    with kormos.precision(dtype):
        model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        model.compile(optimizer="lm", loss="log_cosh")
        result = model.fit(x, y, epochs=100, verbose=0).result
        kernel = model.get_weights()[0]
    assert result.success, result
    # An error e of an output adds e^2 / 2, which is rounded to some `eps`.
    errors = x @ kernel - y
    assert np.sqrt(np.mean(errors**2)) <= 2 * np.finfo(dtype).eps ** 0.5


def below_zero(y, z):
    return z**2 - z * y


def test_a_loss_that_is_zero_at_the_start(float64):
    """The loss is zero there, and a relative decrease means nothing."""
    model = linear()
    model.compile(optimizer="lm", loss=below_zero)
    model.set_weights([np.zeros((5, 1))])
    y = X @ np.arange(5.0)[:, None]
    result = model.fit(X, y, epochs=20, verbose=0).result
    assert result.success, result
    assert result.loss == pytest.approx(-np.mean(y**2) / 4, rel=1e-12)
    found = model.get_weights()[0][:, 0]
    np.testing.assert_allclose(found, np.arange(5) / 2, atol=1e-10)


# Callbacks, files, resuming


def test_early_stopping_and_validation(float64):
    x, y = surface(90)
    model = net(inputs=(2,))
    stop = keras.callbacks.EarlyStopping(
        "val_loss", min_delta=1e9, patience=3, restore_best_weights=True
    )
    history = model.fit(
        x, y, epochs=50, validation_split=0.5, callbacks=[stop], verbose=0
    )
    assert history.result.status == "stopped by callback"
    assert len(history.history["val_loss"]) == stop.stopped_epoch + 1 <= 5
    # These are the weights of the epoch at which it stopped.
    assert model.evaluate(x[45:], y[45:], verbose=0) == pytest.approx(
        history.history["val_loss"][0], rel=1e-9
    )


def test_a_checkpoint_keeps_the_options(tmp_path):
    x, y = sinc(50)
    options = {
        "gtol": 1e-9,
        "ftol": 1e-8,
        "xtol": 1e-7,
        "bounds": {".*bias": [-3, 3]},
        "acceleration": False,
        "preset": "matlab",
        "linear_solver": "dense",
        "stochastic": False,
        "epochs": 7,
        "batch_size": 25,
    }
    optimizer = LevenbergMarquardt(**options)
    config = optimizer.get_config()
    again = LevenbergMarquardt.from_config(config).get_config()
    assert again == config
    model = net(optimizer=optimizer)
    path = tmp_path / "model.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(path, monitor="loss")
    model.fit(x, y, epochs=3, callbacks=[checkpoint], verbose=0)
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is LevenbergMarquardt
    assert loaded.optimizer.get_config() == config
    for name in set(options) - {"bounds"}:
        assert getattr(loaded.optimizer, name) == options[name]
    np.testing.assert_array_equal(weights(loaded), weights(model))


def test_ten_and_ten_iterations_are_twenty(tmp_path):
    straight, model = net(inputs=(2,)), net(inputs=(2,))
    model.optimizer.keep_state = True
    losses = straight.fit(*surface(), epochs=20, verbose=0).history["loss"]
    first = model.fit(*surface(), epochs=10, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        second = one.fit(*surface(), epochs=10, resume=True, verbose=0)
        assert first.history["loss"] + second.history["loss"] == losses
        np.testing.assert_array_equal(weights(one), weights(straight))


@pytest.mark.slow
@eager_only
@pytest.mark.parametrize(
    "options",
    [{"preset": "matlab"}, {"linear_solver": "cg"}, {"linear_solver": "rows"}],
    ids=str,
)
def test_resume_of_variants(options, float64):
    def fit(*epochs):
        model = net(inputs=(2,), optimizer=LevenbergMarquardt(**options))
        losses = []
        for count in epochs:
            history = model.fit(
                *surface(), epochs=count, resume=True, verbose=0
            )
            losses += history.history["loss"]
        return losses, weights(model)

    losses, expected = fit(12)
    again, actual = fit(5, 7)
    assert again == losses
    np.testing.assert_array_equal(actual, expected)


def test_resume_after_set_weights(float64):
    x, y = surface()
    model = net(inputs=(2,))
    model.fit(x, y, epochs=5, verbose=0)
    model.set_weights([1.1 * w for w in model.get_weights()])
    loss = model.evaluate(x, y, verbose=0)
    history = model.fit(x, y, epochs=5, resume=True, verbose=0)
    assert history.result.initial_loss == pytest.approx(loss, rel=1e-6)
    assert history.result.loss < loss


# Batches


def test_stochastic_steps_lower_the_loss():
    x, y = sinc(200)
    model = net()
    history = model.fit(
        x, y, epochs=5, batch_size=50, stochastic=True, verbose=0
    )
    assert history.result.loss < 0.9 * history.result.initial_loss
    assert history.result.iterations == 5
    assert all(0 <= steps <= 4 for steps in history.history["steps"])
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        history.result.loss, rel=1e-4
    )


def test_stochastic_needs_a_batch_size():
    x, y = sinc(200)
    model = net(optimizer=LevenbergMarquardt(stochastic=True))
    before = model.get_weights()
    with pytest.raises(ValueError, match="`batch_size`. Received"):
        model.fit(x, y, verbose=0)
    assert_same_weights(model, before)
    model.optimizer.batch_size = 50
    assert model.fit(x, y, epochs=1, verbose=0).result.iterations == 1


def test_damping_goes_on_from_batch_to_batch(monkeypatch):
    begin, seen = loop.LeastSquaresRun.begin, []

    def noted(self, theta, earlier):
        is_finite = begin(self, theta, earlier)
        before = None if earlier is None else earlier.arrays()
        seen.append((before, self.logs()))
        return is_finite

    monkeypatch.setattr(loop.LeastSquaresRun, "begin", noted)
    x, y = sinc(200)
    model = net()
    history = model.fit(
        x, y, epochs=2, batch_size=50, stochastic=True, verbose=0
    )
    assert len(seen) == 8
    assert seen[0][0] is None
    for before, logs in seen[1:]:
        assert logs["radius"] == before["radius"] > 0
        assert logs["damping"] == before["damping"]
    state = model.optimizer.solver_state.arrays()
    assert state["radius"] == history.history["radius"][-1]
    # A later fit that resumes continues from there.
    seen.clear()
    settings = {"batch_size": 50, "stochastic": True, "verbose": 0}
    model.fit(x, y, epochs=1, resume=True, **settings)
    assert seen[0][1]["radius"] == history.history["radius"][-1]


def test_batches_are_drawn_alike_each_time():
    x, y = sinc(200)
    settings = {"batch_size": 50, "stochastic": True, "verbose": 0}
    losses = [
        net().fit(x, y, epochs=2, **settings).history["loss"] for _ in range(2)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("is_saved", [False, True])
def test_two_and_two_passes_are_four(is_saved, tmp_path):
    x, y = sinc(200)
    settings = {"batch_size": 50, "stochastic": True, "verbose": 0}
    model = net()
    expected = model.fit(x, y, epochs=4, **settings).history
    wanted, model = weights(model), net()
    model.optimizer.keep_state = is_saved or None
    first = model.fit(x, y, epochs=2, **settings).history
    if is_saved:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    second = model.fit(x, y, epochs=2, resume=True, **settings).history
    for name in ("loss", "step", "damping", "radius"):
        assert first[name] + second[name] == expected[name]
    np.testing.assert_array_equal(weights(model), wanted)


def test_a_backup_goes_on_with_the_passes_of_one_fit(tmp_path):
    """A callback that saves during a fit saves the present state."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    x, y = sinc(200)
    settings = {"batch_size": 50, "stochastic": True, "verbose": 0}
    whole = net().fit(x, y, epochs=4, **settings).history["loss"]

    def backup():
        return kormos.callbacks.BackupAndRestore(
            tmp_path / "backup", delete_checkpoint=False
        )

    net().fit(x, y, epochs=4, callbacks=[backup(), Stop()], **settings)
    rest = net().fit(x, y, epochs=4, callbacks=[backup()], **settings)
    assert rest.history["loss"] == whole[2:]


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_a_resumed_fit_of_batches_keeps_what_was_better():
    """Steps on batches go on from the latest point, which may be worse."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(103, 3))
    y = x @ [[1.0], [2.0], [-1.0]] + 0.3 * rng.normal(size=(103, 1))
    settings = {"batch_size": 20, "stochastic": True, "verbose": 0}
    worse = 0
    for epochs in range(1, 12):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(8, "tanh"),
                keras.layers.Dense(1),
            ]
        )
        model.compile("lm", loss="mse")
        model.fit(x, y, epochs=epochs, **settings)
        before = model.evaluate(x, y, batch_size=103, verbose=0)
        history = model.fit(x, y, epochs=1, resume=True, **settings)
        after = model.evaluate(x, y, batch_size=103, verbose=0)
        assert after <= before * (1 + 1e-6)
        assert history.result.kept_loss == pytest.approx(after, rel=1e-6)
        worse += history.history["loss"][0] > before
    assert worse  # Otherwise there was nothing to keep.


def test_a_resumed_fit_of_batches_begins_at_weights_that_were_set():
    x, y = sinc(200)
    model = net()
    settings = {"batch_size": 50, "stochastic": True, "verbose": 0}
    start = model.get_weights()
    first = model.evaluate(x, y, batch_size=200, verbose=0)
    model.fit(x, y, epochs=4, **settings)
    model.set_weights(start)
    history = model.fit(x, y, epochs=1, resume=True, **settings)
    result = history.result
    assert result.initial_loss == pytest.approx(first, rel=1e-5)
    (after,) = history.history["loss"]
    assert result.loss == pytest.approx(min(first, after), rel=1e-5)


def test_a_fit_of_batches_that_is_not_resumed_begins_anew():
    x, y = sinc(200)
    model = net()
    settings = {"batch_size": 50, "stochastic": True, "verbose": 0}
    start = model.get_weights()
    first = model.fit(x, y, epochs=2, **settings).history["loss"]
    model.set_weights(start)
    assert model.fit(x, y, epochs=2, **settings).history["loss"] == first


def test_one_batch_of_all_rows_is_a_step_of_the_whole(float64):
    x, y = sinc(60)
    whole, batch = net(), net()
    whole.fit(x, y, epochs=1, verbose=0)
    batch.fit(x, y, epochs=1, batch_size=60, stochastic=True, verbose=0)
    np.testing.assert_allclose(
        weights(batch), weights(whole), rtol=0, atol=1e-9
    )


def test_stochastic_steps_of_two_outputs_and_weights(float64):
    model, x, y = two_outputs()
    history = model.fit(
        x,
        y,
        sample_weight=np.linspace(0, 1, 40),
        epochs=2,
        batch_size=16,
        stochastic=True,
        verbose=0,
    )
    assert history.result.loss < history.result.initial_loss
