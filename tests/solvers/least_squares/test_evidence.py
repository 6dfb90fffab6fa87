"""Weight decay that the data choose.

Expected numbers are a fixed point and a Gaussian density in NumPy, MATLAB's
`trainbr` written again, or another fit.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from kormos.optimizers import LevenbergMarquardt

pytestmark = pytest.mark.usefixtures("unconverged")

ROWS = 40
RNG = np.random.default_rng(3)
X = RNG.standard_normal((ROWS, 5)) * [1.0, 2.0, 0.5, 1.0, 3.0]
Y = X @ [1.0, -0.5, 0.3, 0.0, 2.0] + 0.7 + 0.5 * RNG.standard_normal(ROWS)
WEIGHTS = RNG.uniform(0.5, 3.0, ROWS)
COLUMNS = "beta", "effective_parameters", "log_evidence"


def fixed_point(groups, weights=None):
    """MacKay's fixed point for a linear model, in closed form.

    Returns:
        The alphas, beta, the numbers of effective parameters, the logarithm of
        the density of the data, and the parameters.
    """
    w = np.ones(ROWS) if weights is None else weights / np.mean(weights)
    design = np.column_stack([X, np.ones(ROWS)])
    matrix, right = design.T @ (w[:, None] * design), design.T @ (w * Y)
    alpha, beta = np.ones(max(groups) + 1), 1.0
    groups = np.array(groups)
    for _ in range(5000):
        hessian = beta * matrix + np.diag(alpha[groups])
        inverse = np.linalg.inv(hessian)
        theta = beta * inverse @ right
        shares = 1 - alpha[groups] * np.diagonal(inverse)
        gamma = np.bincount(groups, weights=shares)
        alpha = gamma / (2 * np.bincount(groups, weights=theta**2))
        errors = np.sum(w * (Y - design @ theta) ** 2)
        beta = (ROWS - gamma.sum()) / (2 * errors)
    covariance = np.diag(1 / (2 * beta * w))
    covariance += design / (2 * alpha[groups]) @ design.T
    _, log_det = np.linalg.slogdet(covariance)
    square = Y @ np.linalg.solve(covariance, Y)
    density = -(square + log_det + ROWS * np.log(2 * np.pi)) / 2
    return alpha, beta, gamma, density, theta


def straight(**options):
    """A linear model, compiled with evidence."""
    options = {"regularization": "evidence", **options}
    with kormos.precision("float64"):
        model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        model.compile(optimizer=LevenbergMarquardt(**options), loss="mse")
    return model


def fit(model, epochs=100, **kwargs):
    with kormos.precision("float64"):
        return model.fit(X, Y[:, None], epochs=epochs, verbose=0, **kwargs)


def parameters(model):
    return np.concatenate([w.reshape(-1) for w in model.get_weights()])


def assert_settled(history, expected):
    alpha, beta, gamma, density, _ = expected
    last = [history.history[name][-1] for name in COLUMNS]
    np.testing.assert_allclose(last, [beta, gamma.sum(), density], rtol=1e-8)
    assert history.result.status == "converged"


@pytest.mark.parametrize("preset", [None, "matlab"])
@pytest.mark.parametrize("linear_solver", ["rows", "dense"])
def test_a_linear_model_has_the_closed_form_of_bayesian_regression(
    preset, linear_solver
):
    model = straight(preset=preset, linear_solver=linear_solver)
    history = fit(model)
    expected = fixed_point([0] * 6)
    assert_settled(history, expected)
    alpha = history.history["alpha"][-1]
    np.testing.assert_allclose(alpha, expected[0][0], rtol=1e-8)
    np.testing.assert_allclose(parameters(model), expected[-1], rtol=1e-8)


def test_each_variable_can_have_a_weight_of_its_own():
    model = straight(regularization="evidence-by-variable")
    history = fit(model)
    expected = fixed_point([0, 0, 0, 0, 0, 1])
    assert_settled(history, expected)
    for name, index in (("alpha", 0), ("effective_parameters", 2)):
        found = [
            history.history[f"{name}/{v.path}"][-1]
            for v in model.trainable_variables
        ]
        np.testing.assert_allclose(found, expected[index], rtol=1e-8)
    np.testing.assert_allclose(parameters(model), expected[-1], rtol=1e-8)


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_sample_weights_count_relative_to_their_mean(factor):
    model = straight()
    history = fit(model, sample_weight=factor * WEIGHTS)
    expected = fixed_point([0] * 6, WEIGHTS)
    assert_settled(history, expected)
    np.testing.assert_allclose(parameters(model), expected[-1], rtol=1e-8)


def test_rows_without_weight_are_no_data():
    model = straight()
    x, y = np.concatenate([X, X + 1]), np.concatenate([Y, 5 * Y])[:, None]
    weights = np.repeat([1.0, 0.0], ROWS)
    with kormos.precision("float64"):
        history = model.fit(x, y, sample_weight=weights, epochs=100, verbose=0)
    assert_settled(history, fixed_point([0] * 6))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_residuals_give_the_same_whatever_their_reduction_is(reduction):
    slopes = keras.Variable(np.full(5, 0.1), dtype="float64")
    offset = keras.Variable(0.1, dtype="float64")

    def residuals(data):
        found = ops.matmul(data["x"], slopes[:, None])[:, 0] + offset
        return found - data["y"]

    result = kormos.least_squares(
        residuals,
        [slopes, offset],
        LevenbergMarquardt(regularization="evidence"),
        data={"x": X, "y": Y},
        reduction=reduction,
        precision="float64",
    )
    _, beta, gamma, density, _ = fixed_point([0] * 6)
    last = [result.history[name][-1] for name in COLUMNS]
    np.testing.assert_allclose(last, [beta, gamma.sum(), density], rtol=1e-8)


def test_the_loss_stays_the_users_and_may_rise():
    model = straight()
    design = np.column_stack([X, np.ones(ROWS)])
    best, (lowest,), *_ = np.linalg.lstsq(design, Y)
    model.set_weights([best[:5, None], best[5:]])
    history = fit(model)
    with kormos.precision("float64"):
        own = model.evaluate(X, Y[:, None], verbose=0)
    result, last = history.result, history.history
    np.testing.assert_allclose(result.loss, own, rtol=1e-12)
    np.testing.assert_allclose(last["loss"][-1], own, rtol=1e-12)
    assert own > lowest / ROWS
    decay = last["alpha"][-1] / last["beta"][-1]
    squares = decay * np.sum(parameters(model) ** 2) / ROWS
    regularized = last["regularized_loss"][-1]
    np.testing.assert_allclose(regularized, own + squares, rtol=1e-9)


def test_a_fit_goes_on_with_its_hyperparameters():
    models = [straight(), straight()]
    for model in models:
        # Numbers that any dtype has.
        model.set_weights([np.full((5, 1), 0.25), np.ones(1)])
    once = fit(models[0], epochs=8)
    fit(models[1], epochs=3)
    rest = fit(models[1], epochs=8, initial_epoch=3, resume=True)
    for name in ("loss", "alpha", *COLUMNS):
        np.testing.assert_allclose(
            rest.history[name], once.history[name][3:], rtol=1e-9
        )


def test_a_saved_model_keeps_the_option(tmp_path):
    model = straight(regularization="evidence-by-variable")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.regularization == "evidence-by-variable"


# MATLAB


def curve():
    """Inputs and targets of a curve that exp(-b x) fits, with noise."""
    x = np.linspace(0.0, 2.0, 15)
    noise = np.random.default_rng(0).standard_normal(15)
    return x, 1.5 * np.exp(-0.8 * x) + 0.05 * noise


def trainbr(theta, epochs):
    """MATLAB's rule: mu from 0.005, times 10 and 0.1, and Foresee and Hagan's.

    The penalty begins with 1e-6 of J'J, and at most doubles with a step.

    Returns:
        For each epoch alpha, beta, and the number of effective parameters.
    """
    x, y = curve()

    def errors(t):
        return t[0] * np.exp(-t[1] * x) - y

    def sums(t):
        return np.array([np.sum(errors(t) ** 2), np.sum(t**2)])

    def derivatives(t):
        e = np.exp(-t[1] * x)
        return np.column_stack([e, -t[0] * x * e])

    beta = 15 / (2 * sums(theta)[0])
    alpha = 1e-6 * beta * np.max(np.sum(derivatives(theta) ** 2, axis=0))
    mu, found = 5e-3, []
    for _ in range(epochs):
        jacobian = derivatives(theta)
        gram, slope = jacobian.T @ jacobian, jacobian.T @ errors(theta)
        before = [beta, alpha] @ sums(theta)
        while True:
            matrix = beta * gram + (mu + alpha) * np.eye(2)
            step = np.linalg.solve(matrix, beta * slope + alpha * theta)
            if [beta, alpha] @ sums(theta - step) < before:
                break
            mu *= 10
        mu, theta = 0.1 * mu, theta - step
        jacobian = derivatives(theta)
        hessian = beta * jacobian.T @ jacobian + alpha * np.eye(2)
        gamma = 2 - alpha * np.trace(np.linalg.inv(hessian))
        found.append([alpha, beta, gamma])
        squares, decay = sums(theta)
        most = 2 * alpha / beta
        beta = (15 - gamma) / (2 * squares)
        alpha = min(gamma / (2 * decay), most * beta)
    return np.transpose(found)


def test_the_preset_takes_the_steps_of_trainbr():
    x, y = curve()
    start = np.array([0.25, 2.5])
    theta = keras.Variable(start, dtype="float64")
    result = kormos.least_squares(
        lambda d: theta[0] * ops.exp(-theta[1] * d["x"]) - d["y"],
        [theta],
        LevenbergMarquardt(regularization="evidence", preset="matlab"),
        data={"x": x, "y": y},
        max_iterations=6,
        precision="float64",
    )
    names = "alpha", "beta", "effective_parameters"
    found = [result.history[name] for name in names]
    np.testing.assert_allclose(found, trainbr(start, 6), rtol=1e-8)


# Networks


def sine_fit(width, **options):
    """The error beside a noisy sine's curve, and the History."""
    x = np.linspace(-1, 1, 41)[:, None]
    noise = np.random.default_rng(1).standard_normal(x.shape)
    y = np.sin(2 * np.pi * x) + 0.1 * noise
    keras.utils.set_random_seed(1)
    with kormos.precision("float64"):
        model = keras.Sequential(
            [keras.Input((1,)), layers.Dense(width, "tanh"), layers.Dense(1)]
        )
        model.compile(optimizer=LevenbergMarquardt(**options), loss="mse")
        history = model.fit(x, y, epochs=150, verbose=0)
        found = model.predict(x, verbose=0)
    return np.mean((found - np.sin(2 * np.pi * x)) ** 2), history.history


@pytest.mark.slow
def test_the_width_of_a_network_hardly_matters():
    fits = [sine_fit(n, regularization="evidence") for n in (10, 20)]
    numbers = [history["effective_parameters"][-1] for _, history in fits]
    assert 8 < min(numbers) and max(numbers) < 14
    plain, _ = sine_fit(20)
    assert fits[1][0] < plain


@pytest.mark.slow
@pytest.mark.parametrize("width", [10, 20])
def test_the_preset_keeps_weights_that_begin_as_in_keras(width):
    found, history = sine_fit(width, regularization="evidence", preset="matlab")
    plain, _ = sine_fit(width, preset="matlab")
    assert 8 < history["effective_parameters"][-1] < 14
    assert found < plain


@pytest.mark.parametrize("precision", [None, "auto"])
def test_float32_models_settle_too(precision):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    optimizer = LevenbergMarquardt(regularization="evidence")
    model.compile(optimizer=optimizer, loss="mse")
    data = X.astype("float32"), Y[:, None].astype("float32")
    history = model.fit(*data, epochs=300, verbose=0, precision=precision)
    _, beta, gamma, _, theta = fixed_point([0] * 6)
    last = history.history
    found = last["beta"][-1], last["effective_parameters"][-1]
    np.testing.assert_allclose(found, [beta, gamma.sum()], rtol=1e-4)
    np.testing.assert_allclose(parameters(model), theta, rtol=1e-3)
    assert history.result.success


# Refusals


@pytest.mark.parametrize(
    ("loss", "activation", "regularizer"),
    [
        ("binary_crossentropy", "sigmoid", None),
        (keras.losses.Huber(0.5), "linear", None),
        (keras.losses.Huber(20.0), "linear", None),
        ("poisson", "softplus", None),
        ("mse", "linear", "l2"),
    ],
    ids=["crossentropy", "huber", "wide huber", "poisson", "regularizer"],
)
def test_other_losses_are_refused(loss, activation, regularizer):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(1, activation, kernel_regularizer=regularizer),
        ]
    )
    optimizer = LevenbergMarquardt(regularization="evidence")
    model.compile(optimizer=optimizer, loss=loss)
    with pytest.raises(ValueError, match="squared errors"):
        model.fit(X, (Y[:, None] > 0) * 1.0, epochs=1, verbose=0)


def test_robust_residuals_are_refused():
    theta = keras.Variable(np.ones(5), dtype="float64")
    with pytest.raises(ValueError, match="squared errors"):
        kormos.least_squares(
            lambda d: ops.matmul(d["x"], theta[:, None])[:, 0] - d["y"],
            [theta],
            LevenbergMarquardt(regularization="evidence"),
            data={"x": X, "y": Y},
            loss="soft_l1",
        )


@pytest.mark.parametrize(
    "options", [{"stochastic": True}, {"linear_solver": "cg"}]
)
def test_options_that_it_does_not_suit_are_refused(options):
    with pytest.raises(ValueError, match="needs all of the data"):
        LevenbergMarquardt(regularization="evidence", **options)


def test_bounds_and_batches_of_a_fit_are_refused():
    with pytest.raises(ValueError, match="without bounds"):
        fit(straight(bounds={".*": (0, None)}))
    with pytest.raises(ValueError, match="needs all of the data"):
        fit(straight(), stochastic=True)
