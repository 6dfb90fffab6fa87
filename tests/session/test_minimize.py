"""`kormos.minimize`: any loss over any variables."""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos
from conftest import lindata
from kormos.solvers.scipy.methods import METHODS


def value(variable):
    return ops.convert_to_numpy(variable)


def rosenbrock(v):
    return ops.sum(100 * (v[1:] - v[:-1] ** 2) ** 2 + (1 - v[:-1]) ** 2)


def dense(units, inputs, **kwargs):
    layer = keras.layers.Dense(units, **kwargs)
    return keras.Sequential([keras.Input((inputs,)), layer])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rosenbrock_from_zeros(dtype):
    with kormos.precision(dtype):
        v = keras.Variable(np.zeros(5), dtype=dtype)
        result = kormos.minimize(lambda: rosenbrock(v), [v])
        assert result.success
        np.testing.assert_allclose(value(v), 1, rtol=1e-5, atol=1e-5)


def test_two_networks_in_one_loss(float64):
    # Two linear models whose sum fits the data: one regression in all.
    x, y = lindata(200, noise=0.3)
    first, last = dense(1, 2), dense(1, 3, use_bias=False)
    variables = first.trainable_variables + last.trainable_variables

    targets = ops.convert_to_tensor(y)

    def loss():
        return ops.mean((first(x[:, :2]) + last(x[:, 2:]) - targets) ** 2)

    options = {"ftol": 1e-14, "gtol": 1e-9}
    kormos.minimize(loss, variables, "l-bfgs-b", options=options)
    design = np.column_stack([x[:, :2], np.ones(200), x[:, 2:]])
    expected = np.linalg.lstsq(design, y[:, 0], rcond=None)[0]
    found = np.concatenate([value(v).ravel() for v in variables])
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_frozen_network_and_an_image_as_input(float64):
    # The image whose features are nearest to given ones, within [0, 1].
    network = dense(6, 4, activation="tanh")
    weights = network.get_weights()
    rng = np.random.default_rng(0)
    target = np.tanh(rng.normal(size=(1, 6)))
    features = ops.convert_to_tensor(target)
    image = keras.Variable(np.full((1, 4), 0.5), name="image")

    def loss():
        return ops.sum((network(image) - features) ** 2)

    result = kormos.minimize(
        loss,
        [image],
        "l-bfgs-b",
        bounds={"image": (0, 1)},
        options={"gtol": 1e-10},
    )
    kernel, bias = weights
    expected = scipy.optimize.least_squares(
        lambda x: np.tanh(x @ kernel + bias) - target[0],
        np.full(4, 0.5),
        bounds=(0, 1),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    assert result.loss == pytest.approx(2 * expected.cost, rel=1e-8)
    assert (value(image) >= 0).all() and (value(image) <= 1).all()
    for before, after in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_losses_that_layers_add_are_read(float64):
    # Penalties on the kernel and on the outputs, in closed form: ridge.
    x, y = lindata(50, noise=0.3)
    model = dense(
        1,
        5,
        use_bias=False,
        kernel_regularizer=keras.regularizers.L2(0.5),
        activity_regularizer=keras.regularizers.L2(0.25),
    )

    targets = ops.convert_to_tensor(y)

    def loss():
        residuals = model(x) - targets
        return ops.sum(residuals**2) + sum(model.losses)

    kormos.minimize(
        loss,
        model.trainable_variables,
        "l-bfgs-b",
        options={"ftol": 0, "gtol": 1e-6},
    )
    # Keras divides the penalty on the outputs by the rows.
    gram = (1 + 0.25 / 50) * x.T @ x + 0.5 * np.eye(5)
    expected = np.linalg.solve(gram, x.T @ y)
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-6)
    assert not any(callable(loss) for loss in model.losses)


def test_negative_loss(float64):
    # The normal distribution that fits best has the sample's moments; its
    # density is above one, so that the loss is below zero.
    sample = np.random.default_rng(0).normal(0.03, 0.02, size=100)
    x = ops.convert_to_tensor(sample)
    mean = keras.Variable(0.0, dtype="float64")
    log_scale = keras.Variable(0.0, dtype="float64")

    def loss():
        z = (x - mean) * ops.exp(-log_scale)
        return ops.mean(z**2 / 2) + log_scale + 0.5 * np.log(2 * np.pi)

    result = kormos.minimize(
        loss,
        [mean, log_scale],
        "l-bfgs-b",
        options={"ftol": 0, "gtol": 1e-6},
    )
    assert result.success
    assert result.loss < -2
    assert float(value(mean)) == pytest.approx(sample.mean(), abs=1e-8)
    assert float(value(log_scale)) == pytest.approx(
        np.log(sample.std()), abs=1e-6
    )


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["l-bfgs-b", "bfgs", "cg", "newton-cg"])
def test_poisson_rate_from_a_poor_start(method, dtype):
    # A count of ten. A long first step leads below zero, where it is NaN.
    with kormos.precision(dtype):
        rate = keras.Variable(1.6, dtype=dtype)
        result = kormos.minimize(
            lambda: rate - 10 * ops.log(rate), [rate], method
        )
        assert result.success or dtype == "float32"
        assert result.status in ("converged", "noise floor")
        assert float(value(rate)) == pytest.approx(10, rel=1e-3)
        assert result.loss == pytest.approx(10 - 10 * np.log(10), rel=1e-6)
        # SciPy alone makes 58 and more in float32, and fails.
        assert result.evaluations <= 30


@pytest.mark.parametrize("method", ["l-bfgs-b", "bfgs", "newton-cg"])
def test_poisson_regression_from_a_poor_start(method, float64):
    # Rates of three groups: the means of their counts.
    counts = np.array([[3.0, 7, 5], [40, 55, 46], [0, 1, 1]])
    totals = ops.convert_to_tensor(counts.sum(axis=1))
    log_rates = keras.Variable(np.full(3, 1.6))

    def loss():
        return ops.sum(3 * ops.exp(log_rates) - totals * log_rates)

    result = kormos.minimize(loss, [log_rates], method)
    assert result.success
    np.testing.assert_allclose(
        np.exp(value(log_rates)), counts.mean(axis=1), rtol=1e-3
    )


def test_float32_needs_no_differences():
    # Differences with a step of 1e-8 see nothing here, and stop at once.
    y = np.linspace(1, 5, 5, dtype="float32")
    targets = ops.convert_to_tensor(y)
    k = keras.Variable(np.full(5, 0.5, "float32"))
    result = kormos.minimize(lambda: ops.sum((2 * k - targets) ** 2), [k])
    assert result.success
    np.testing.assert_allclose(value(k), y / 2, rtol=1e-5)


@pytest.mark.parametrize("method", ["l-bfgs-b", "nelder-mead", "trust-ncg"])
def test_callbacks_see_iterates_and_evaluations(method, unconverged):
    v = keras.Variable(np.zeros(3))
    seen, losses = [], []

    def callback(iteration, logs):
        at = value(v)
        assert logs["loss"] == pytest.approx(
            scipy.optimize.rosen(at), rel=1e-4, abs=1e-6
        )
        assert logs["fg_evals"] == len(losses)
        seen.append((iteration, logs, at))
        return iteration == 6

    result = kormos.minimize(
        lambda: rosenbrock(v),
        [v],
        method,
        callback=callback,
        loss_callback=losses.append,
    )
    assert result.status == "stopped by callback"
    assert not result.success
    assert [iteration for iteration, *_ in seen] == [1, 2, 3, 4, 5, 6]
    assert result.iterations == 6
    assert result.evaluations == len(losses) == seen[-1][1]["fg_evals"]
    assert all(type(loss) is float for loss in losses)
    np.testing.assert_array_equal(value(v), seen[-1][2])
    assert set(result.history) == {*seen[0][1], "seconds"}
    assert len(result.history["seconds"]) == 6
    for name in seen[0][1]:
        logged = [logs[name] for _, logs, _ in seen]
        np.testing.assert_array_equal(result.history[name], logged)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_interrupt_leaves_the_best_iterate(method):
    v = keras.Variable(np.array([0.8, 1.1, 0.9, 1.2, 1.1], "float32"))
    iterates = [value(v)]
    losses = []

    def loss_callback(loss):
        losses.append(loss)
        if len(losses) == 5:
            raise KeyboardInterrupt

    result = kormos.minimize(
        lambda: rosenbrock(v),
        [v],
        method,
        callback=lambda *_: iterates.append(value(v)) and None,
        loss_callback=loss_callback,
    )
    assert result.status == "interrupted"
    best = min(iterates, key=scipy.optimize.rosen)
    np.testing.assert_array_equal(value(v), best)
    assert result.loss == pytest.approx(scipy.optimize.rosen(best), rel=1e-4)
    assert result.evaluations == 5
    assert len(result.history["loss"]) == result.iterations


def test_interrupt_at_the_first_evaluation():
    def loss_callback(loss):
        raise KeyboardInterrupt

    v = keras.Variable([7.0])
    result = kormos.minimize(
        lambda: ops.sum(v**2), [v], loss_callback=loss_callback
    )
    assert (result.status, result.iterations) == ("interrupted", 0)
    np.testing.assert_array_equal(value(v), [7.0])


@pytest.mark.parametrize("method", ["l-bfgs-b", "tnc", "cobyla"])
def test_exceptions_leave_the_best_iterate(method):
    v = keras.Variable(np.array([0.8, 1.1, 0.9], "float32"))
    iterates = [value(v)]

    def callback(iteration, logs):
        iterates.append(value(v))
        if iteration == 3:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        kormos.minimize(lambda: rosenbrock(v), [v], method, callback=callback)
    assert len(iterates) == 4
    best = min(iterates, key=scipy.optimize.rosen)
    np.testing.assert_array_equal(value(v), best)


def test_optimizer_with_options_and_its_results():
    optimizer = kormos.optimizers.ScipyBatchOptimizer(
        method="bfgs", epochs=3, options={"c2": 0.5}
    )
    v = keras.Variable(np.zeros(3))
    result = kormos.minimize(lambda: rosenbrock(v), [v], optimizer)
    assert result.iterations == 3
    (raw,) = optimizer.results
    np.testing.assert_allclose(raw.x, value(v), rtol=1e-6)
    staged = kormos.optimizers.ScipyBatchOptimizer(epochs=[1, 2])
    result = kormos.minimize(lambda: rosenbrock(v), [v], staged)
    assert [stage.iterations for stage in result.stages] == [1, 2]


def test_no_iterations_change_nothing(unconverged):
    v = keras.Variable([7.0])
    for optimizer in (
        "l-bfgs-b",
        kormos.optimizers.ScipyBatchOptimizer(epochs=0),
    ):
        most = 0 if optimizer == "l-bfgs-b" else None
        result = kormos.minimize(
            lambda: ops.sum(v**2), [v], optimizer, max_iterations=most
        )
        assert (result.iterations, result.evaluations) == (0, 1)
        assert result.loss == 49
        assert result.history["loss"] == []
    np.testing.assert_array_equal(value(v), [7.0])


def test_unused_variable_is_named_and_kept():
    v = keras.Variable([7.0], name="used")
    w = keras.Variable([5.0], name="idle")
    with pytest.warns(UserWarning, match="does not depend.*: idle"):
        kormos.minimize(lambda: ops.sum(v**2), [v, w])
    np.testing.assert_allclose(value(v), 0, atol=1e-4)
    np.testing.assert_array_equal(value(w), [5.0])


def test_a_start_that_is_not_finite_is_said():
    v = keras.Variable([-1.0])
    with pytest.warns(kormos.ConvergenceWarning, match="non-finite"):
        result = kormos.minimize(lambda: ops.sum(ops.log(v)), [v])
    assert result.status == "non-finite"
    np.testing.assert_array_equal(value(v), [-1.0])


@pytest.mark.parametrize(
    "loss, variables, match",
    [
        (lambda v: v**2, "one", "must return a scalar.*shape .2,"),
        (lambda v: np.sum(value(v)), "one", "must return a tensor"),
        (lambda v: None, "one", "must return a tensor"),
        (lambda v: ops.cast(v[0], "int32"), "one", "floating-point numbers"),
        ("mse", "one", "function of no arguments.*'mse'"),
        (lambda v: ops.sum(v), "none", "at least one"),
        (lambda v: ops.sum(v), "integer", "floating-point.*int32"),
        (lambda v: ops.sum(v), "array", "`keras.Variable`s.*ndarray"),
        (lambda v: ops.sum(v), "twice", "once"),
        (lambda v: ops.sum(v), "bare", "list of `keras.Variable`s"),
        (lambda v: ops.sum(v), "frozen", "trainable=False"),
        (lambda v: ops.sum(v), "empty", r"one entry. Received: \[\(0,\)\]"),
    ],
)
def test_unusable_arguments_raise(loss, variables, match):
    v = keras.Variable([3.0, 4.0])
    integer = keras.Variable([3, 4], dtype="int32", trainable=False)
    lists = {
        "one": [v],
        "none": [],
        "integer": [v, integer],
        "array": [v, np.ones(2)],
        "twice": [v, v],
        "bare": v,
        "frozen": [v, keras.Variable(1.0, trainable=False)],
        "empty": [keras.Variable(np.zeros(0, "float32"))],
    }
    loss_fn = (lambda: loss(v)) if callable(loss) else loss
    with pytest.raises(ValueError, match=match):
        kormos.minimize(loss_fn, lists[variables])
    np.testing.assert_array_equal(value(v), [3, 4])


def test_a_loss_of_a_vector_is_refused_in_words():
    # As `scipy.optimize.minimize` would call it.
    v = keras.Variable([3.0])
    with pytest.raises(ValueError, match="function of no arguments"):
        kormos.minimize(lambda x: ops.sum(x**2), [v])
    with pytest.raises(ValueError, match="number of iterations.*'many'"):
        kormos.minimize(lambda: ops.sum(v**2), [v], max_iterations="many")


def test_a_variable_is_a_constraint_by_itself(float64):
    v = keras.Variable([1.0, 2.0], dtype="float64")
    kormos.minimize(
        lambda: ops.sum((v + 1.0) ** 2),
        [v],
        "slsqp",
        constraints={"type": "ineq", "fun": lambda: v},
    )
    # Not less than zero, nor where it starts.
    np.testing.assert_allclose(ops.convert_to_numpy(v), [0, 0], atol=1e-9)
