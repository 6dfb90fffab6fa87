"""Points that cannot be evaluated are steps that are too long, not errors.

Failing operations are NaN on JAX, and raise an exception on TensorFlow and
PyTorch. A user sees the same on all of them.
"""

import keras
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from kormos.optimizers import ScipyBatchOptimizer

RAISES = BACKEND != "jax"


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array), dtype="float64")


def array(variable):
    return np.array(ops.convert_to_numpy(variable), "float64")


def guarded(x):
    """Returns `x`; if it is not positive, fails like a factorization."""
    x = ops.convert_to_tensor(x)
    root = ops.cholesky(ops.reshape(x, (1, 1)))
    return ops.reshape(root, ()) ** 2


# Exact Gaussian processes, nearly without noise: the covariance of a step
# that is too long is not positive definite to rounding.


def process(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (40, 1))
    y = np.sin(3 * x[:, 0]) + 0.001 * rng.normal(size=40)
    return (x - x.T) ** 2, y


def by_numpy(seed):
    """The least negative log-likelihood, by SciPy alone."""
    squares, y = process(seed)

    def loss(v):
        variance, length, noise = np.exp(v)
        covariance = variance * np.exp(-0.5 * squares / length**2)
        try:
            factor = scipy.linalg.cholesky(
                covariance + noise * np.eye(40), lower=True
            )
        except np.linalg.LinAlgError:
            return np.inf
        whitened = scipy.linalg.solve_triangular(factor, y, lower=True)
        logs = np.log(np.diagonal(factor)).sum()
        return whitened @ whitened / 2 + logs + 20 * np.log(2 * np.pi)

    best = np.array([0.0, 0.0, -10.0])
    for _ in range(6):
        # After a restart, the simplex is no longer collapsed.
        best = scipy.optimize.minimize(
            loss, best, method="nelder-mead", options={"xatol": 1e-7}
        ).x
    return loss(best)


def negative_log_likelihood(seed, v):
    squares, y = process(seed)

    def loss():
        variance, length, noise = (ops.exp(v[i]) for i in range(3))
        covariance = variance * ops.exp(-0.5 * tensor(squares) / length**2)
        factor = ops.cholesky(covariance + noise * tensor(np.eye(40)))
        whitened = ops.solve_triangular(factor, tensor(y[:, None]), lower=True)
        logs = ops.sum(ops.log(ops.diagonal(factor)))
        return ops.sum(whitened**2) / 2 + logs + 20 * np.log(2 * np.pi)

    return loss


# The message of L-BFGS-B, which meets such points.
SAID = {
    "torch": ["raised LinAlgError", "first at evaluation"],
    "tensorflow": ["raised InvalidArgumentError", "first at evaluation"],
    "jax": [],
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("method", ["l-bfgs-b", "slsqp", "trust-ncg"])
@pytest.mark.usefixtures("unconverged")
def test_a_gaussian_process_nearly_without_noise(seed, method, float64):
    v = keras.Variable(np.zeros(3), dtype="float64")
    result = kormos.minimize(negative_log_likelihood(seed, v), [v], method)
    assert result.loss == pytest.approx(by_numpy(seed), abs=1e-5)
    assert np.isfinite(result.history["loss"]).all()
    words = SAID[BACKEND] if method == "l-bfgs-b" else []
    assert all(word in result.message for word in words)


METHODS = sorted(set(kormos.optimizers.METHODS) - {"dogleg"})
TIGHT = {
    "l-bfgs-b": {"gtol": 1e-9, "ftol": 0},
    "nelder-mead": {"xatol": 1e-8, "fatol": 1e-15},
    "powell": {"ftol": 1e-15},
    "slsqp": {"ftol": 1e-15},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [0.01, 20.0])
@pytest.mark.usefixtures("unconverged")
def test_no_method_ends_where_an_evaluation_raises(method, start, float64):
    """The minimum of `w - 2 log w` is at 2. If w is not positive, it raises."""
    w = keras.Variable(start, dtype="float64")
    result = kormos.minimize(
        lambda: w - 2 * ops.log(guarded(w)),
        [w],
        ScipyBatchOptimizer(method=method, options=TIGHT.get(method)),
    )
    assert result.loss == pytest.approx(2 - 2 * np.log(2), abs=1e-8)
    assert array(w) == pytest.approx(2, abs=1e-3)


def fit_a_logarithm():
    """A fit that meets points which raise, and the losses that were seen."""
    w = keras.Variable(20.0, dtype="float64")
    seen = []
    result = kormos.minimize(
        lambda: w - 2 * ops.log(guarded(w)),
        [w],
        "bfgs",
        loss_callback=seen.append,
    )
    assert np.isnan(seen).any()
    assert result.evaluations == len(seen)
    return result, seen


@pytest.mark.skipif(RAISES, reason="operations raise")
@pytest.mark.usefixtures("unconverged")
def test_nothing_is_told_where_nothing_raises(float64):
    result, _ = fit_a_logarithm()
    assert "raised" not in result.message


@pytest.mark.skipif(not RAISES, reason="operations give NaN")
@pytest.mark.usefixtures("unconverged")
def test_what_is_raised_is_told_with_its_place_and_how_often(float64):
    result, seen = fit_a_logarithm()
    bad = int(np.isnan(seen).sum())
    often = "once" if bad == 1 else f"{bad} times"
    first = 1 + int(np.isnan(seen).argmax())
    assert f"Error {often}, at points that were not taken" in result.message
    assert f"first at evaluation {first}: " in result.message
    # It is one line, without TensorFlow's additions.
    assert "\n" not in result.message
    assert "{{" not in result.message
    # In a traced function an operation has no line of its own.
    is_placed = "(test_rejections.py, line " in result.message
    assert is_placed or BACKEND != "torch"


@pytest.mark.parametrize("method", ["lm", "l-bfgs-b", "slsqp"])
def test_residuals_that_raise(method, float64):
    # The root of a parameter that steps make negative; the best is 4.
    w = keras.Variable([30.0], dtype="float64")
    x = np.linspace(0.1, 1, 20)
    result = kormos.least_squares(
        lambda d: guarded(w[0]) ** 0.5 * d["x"] - d["y"],
        [w],
        method,
        data={"x": x, "y": 2 * x},
    )
    assert array(w) == pytest.approx(4, rel=1e-4), result
    assert result.success


class Root(layers.Layer):
    """A layer that scales by `(1 - w**2)**0.5`, with a factorization."""

    def __init__(self, start):
        super().__init__()
        self.w = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(start), name="w"
        )

    def call(self, inputs):
        w = 1 * self.w
        one = ops.ones_like(w)
        matrix = ops.stack([one, w, w, one])
        return inputs * ops.cholesky(ops.reshape(matrix, (2, 2)))[1, 1]


def root_model(start, optimizer):
    model = keras.Sequential([keras.Input((1,)), Root(start)])
    model.compile(optimizer=optimizer, loss="mse")
    return model


LINE = np.linspace(0.1, 1, 20)[:, None]


@pytest.mark.parametrize("optimizer", ["l-bfgs-b", "lm"])
def test_a_model_whose_layer_raises(optimizer, float64):
    model = root_model(0.999, optimizer)
    history = model.fit(LINE, 0.6 * LINE, epochs=100, verbose=0)
    assert history.result.success, history.result
    # (1 - w**2)**0.5 is .6 at .8.
    assert abs(model.get_weights()[0]) == pytest.approx(0.8, rel=1e-4)


@pytest.mark.usefixtures("unconverged")
def test_batches_that_raise(float64):
    model = root_model(0.9999, "lm")
    history = model.fit(
        LINE,
        0.6 * LINE,
        batch_size=5,
        stochastic=True,
        epochs=20,
        verbose=0,
    )
    assert np.isfinite(history.history["loss"]).all()
    assert abs(model.get_weights()[0]) == pytest.approx(0.8, rel=1e-3)


@pytest.mark.usefixtures("unconverged")
def test_blocks_and_held_out_points_that_raise(float64):
    """They are evaluated separately from the loss, and do not end the fit."""
    w = keras.Variable([2.0], dtype="float64")
    result = kormos.least_squares(
        lambda d: {
            "a": (guarded(w[0]) * d["x"] - d["x"]) / guarded(d["s"][0, 0]),
            "b": w[0] - 1.0,
        },
        [w],
        data={"x": LINE, "s": np.ones((20, 1))},
        validation_data={"x": LINE, "s": -np.ones((20, 1))},
    )
    assert array(w) == pytest.approx(1, rel=1e-6)
    assert np.isnan(result.history["val_loss"]).all()
    assert np.isfinite(result.history["a_loss"]).all()


# Starts


@pytest.mark.parametrize("method", ["l-bfgs-b", "nelder-mead", "newton-cg"])
@pytest.mark.parametrize("precision", [None, "float64", "auto"])
def test_a_start_that_raises_is_not_finite(method, precision):
    w = keras.Variable(-1.0)
    with pytest.warns(kormos.ConvergenceWarning, match="non-finite"):
        result = kormos.minimize(
            lambda: w - 2 * ops.log(guarded(w)),
            [w],
            method,
            precision=precision,
        )
    assert result.status == "non-finite"
    assert not result.success
    assert result.iterations == 0
    assert result.evaluations <= 2
    assert np.isnan(result.loss)
    assert array(w) == -1
    assert ("first at the start: " in result.message) == RAISES
    is_caused = "NaN" in result.message or "positive-definite" in result.message
    assert is_caused or not RAISES


def test_residuals_that_raise_at_the_start():
    w = keras.Variable([-1.0])
    with pytest.warns(kormos.ConvergenceWarning, match="non-finite"):
        result = kormos.least_squares(
            lambda d: guarded(w[0]) * d - 1.0, [w], data=LINE
        )
    assert result.status == "non-finite"
    assert array(w) == -1


@pytest.mark.parametrize("optimizer", ["l-bfgs-b", "lm"])
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_model_that_raises_at_the_start(optimizer, run_eagerly):
    model = root_model(1.5, optimizer)
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=run_eagerly)
    with pytest.warns(kormos.ConvergenceWarning, match="non-finite"):
        history = model.fit(LINE, 0.6 * LINE, verbose=0)
    assert history.result.status == "non-finite"
    assert history.result.iterations == 0
    assert history.epoch == [0]
    assert model.get_weights()[0] == 1.5
    # Run eagerly, some operations of JAX raise too.
    assert "first at the start: " in history.result.message or not RAISES


def test_metrics_and_validation_where_nothing_can_be_computed():
    model = root_model(1.5, "l-bfgs-b")
    model.compile(optimizer="l-bfgs-b", loss="mse", metrics=["mae"])
    with pytest.warns(kormos.ConvergenceWarning, match="non-finite"):
        history = model.fit(LINE, LINE, validation_data=(LINE, LINE), verbose=0)
    names = {"loss", "mae", "val_loss", "val_mae"}
    assert names <= set(history.history)
    assert all(np.isnan(history.history[name][0]) for name in names)


def test_spreads_that_cannot_be_computed():
    w = keras.Variable([-1.0])
    with pytest.warns(kormos.ConvergenceWarning, match="non-finite"):
        result = kormos.least_squares(
            lambda d: guarded(w[0]) * d - 1.0,
            [w],
            data=LINE,
            loss="soft_l1",
            f_scale="auto",
        )
    assert result.status == "non-finite"


ERRORS = {
    "type": lambda w: w + "a",
    "shape": lambda w: w + ops.sum(ops.ones(2) * ops.ones(3)),
    "index": lambda w: ops.ones(3)[1, 1] * w,
    "own": lambda w: w + [][1],
}


@pytest.mark.parametrize("name", sorted(ERRORS))
@pytest.mark.parametrize("method", ["l-bfgs-b", "lbfgs"])
def test_an_error_of_the_code_is_raised_at_the_start(name, method):
    w = keras.Variable(2.0)
    with pytest.raises(Exception) as caught:
        kormos.minimize(lambda: ERRORS[name](w), [w], method)
    assert not isinstance(caught.value, Warning)


@pytest.mark.parametrize("start", [-1.0, 50.0])
@pytest.mark.parametrize("method", ["l-bfgs-b", "tnc", "trust-constr"])
def test_a_start_is_moved_into_its_bounds_first(start, method, float64):
    w = keras.Variable(start, dtype="float64", name="w")
    seen = []
    result = kormos.minimize(
        lambda: w - 2 * ops.log(guarded(w) * guarded(40 - w) / (40 - w)),
        [w],
        method,
        bounds={"w": (0.5, 30)},
        loss_callback=seen.append,
    )
    assert np.isfinite(seen).all()
    assert result.success, result
    assert array(w) == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("method", ["lm", "l-bfgs-b"])
def test_residuals_are_evaluated_within_bounds_alone(method, float64):
    w = keras.Variable([-1.0], dtype="float64", name="w")
    result = kormos.least_squares(
        lambda d: guarded(w[0]) * d - 2 * d,
        [w],
        method,
        data=LINE,
        bounds={"w": (0.5, 30)},
    )
    assert result.success, result
    assert np.isfinite(result.initial_loss)
    assert array(w) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["l-bfgs-b", "lm"])
def test_a_model_is_moved_into_its_bounds_first(optimizer, float64):
    model = root_model(1.5, optimizer)
    history = kormos.fit(
        model,
        LINE,
        0.6 * LINE,
        bounds={".*w": (0.1, 0.99)},
        epochs=50,
        verbose=0,
    )
    assert history.result.success, history.result
    assert np.isfinite(history.result.initial_loss)
    assert model.get_weights()[0] == pytest.approx(0.8, rel=1e-4)


def test_what_is_refused_does_not_move_into_its_bounds():
    w = keras.Variable(-1.0, name="w")
    with pytest.raises(ValueError, match="must return a scalar"):
        kormos.minimize(lambda: w * ops.ones(2), [w], bounds={"w": (0, None)})
    assert array(w) == -1


@pytest.mark.parametrize("start", [0.3, -5.0])
def test_a_kept_start_lies_within_its_bounds(start):
    """The loss is lower out of bounds, where the variable began."""
    w = keras.Variable(start, name="w")
    result = kormos.minimize(
        lambda: (w + 5) ** 2,
        [w],
        "l-bfgs-b",
        bounds={"w": (1, 3)},
        precision="float64",
    )
    assert array(w) == 1
    assert result.kept_loss == 36


# float32 and what follows


LOGISTIC = np.arange(0, 1001, 10.0)
STEP = 2 * (LOGISTIC > 505) + 0.05 * np.random.default_rng(0).normal(size=101)


def test_float64_goes_on_where_float32_cannot_be_differentiated():
    """A steep logistic curve. SciPy finds the minimum."""
    p = keras.Variable([1.0, 0.1, 450.0])
    result = kormos.least_squares(
        lambda d: p[0] / (1 + ops.exp(-p[1] * (d["x"] - p[2]))) - d["y"],
        [p],
        data={"x": LOGISTIC, "y": STEP},
        reduction="sum",
        precision="auto",
    )
    assert result.float64_from is not None
    assert result.loss == pytest.approx(0.229266, rel=1e-5)


def test_float64_goes_on_from_a_start_that_float32_overflows():
    """Planck's law, from a temperature at which `exp` is infinite."""
    x = np.linspace(0.1, 20, 40)
    p = keras.Variable([1.0, 0.2])
    result = kormos.least_squares(
        lambda d: p[0] * d["x"] ** 3 / (ops.exp(d["x"] / p[1]) - 1) - d["y"],
        [p],
        data={"x": x, "y": 2 * x**3 / (np.exp(x / 1.5) - 1)},
        precision="auto",
    )
    assert result.float64_from == 0
    np.testing.assert_allclose(array(p), [2, 1.5], rtol=1e-6)
    assert np.isfinite(result.initial_loss)


def test_float64_goes_on_where_float32_raises():
    """1 + 1e-9 is 1 in float32, whose covariance is not positive definite."""
    w = keras.Variable(1e-9, name="w")

    def loss():
        x = 1 * w
        one = ops.ones_like(x)
        matrix = ops.stack([one + x, one, one, one + x])
        factor = ops.cholesky(ops.reshape(matrix, (2, 2)))
        return (ops.log(factor[1, 1]) + 1) ** 2

    result = kormos.minimize(
        loss, [w], bounds={"w": (1e-9, 1)}, precision="auto"
    )
    assert result.float64_from == 0
    # The entry is (2w + w**2) / (1 + w), rooted: 1/e.
    best = np.exp(-2.0)
    root = ((best - 2) + np.sqrt((2 - best) ** 2 + 4 * best)) / 2
    assert array(w) == pytest.approx(root, rel=1e-3)


# Python code within the loss


class Refused(Exception):
    """An exception class of the user."""


def called(fn, x):
    """Returns `x`, and calls `fn` with its value at every evaluation."""
    if BACKEND == "torch":
        fn(x.detach())
        return x
    if BACKEND == "tensorflow":
        import tensorflow as tf

        kept = tf.stop_gradient(x)
        back = tf.ensure_shape(tf.py_function(fn, [kept], x.dtype), x.shape)
    else:
        import jax

        # Within a loop JAX calls Python where there is no float64.
        kept = ops.cast(jax.lax.stop_gradient(x), "float32")
        shape = jax.ShapeDtypeStruct(x.shape, kept.dtype)
        back = jax.pure_callback(lambda x: np.array(fn(x)), shape, kept)
    return x + ops.cast(back - kept, x.dtype)


def minimized_by_python(error, start, method="bfgs"):
    """Minimizes `w - 2 log w`; Python code raises if w is not positive."""
    w = keras.Variable(start, dtype="float64")

    def check(x):
        if float(x) <= 0:
            raise error("what the test raises")
        return x

    def loss():
        x = called(check, ops.convert_to_tensor(w))
        return x - 2 * ops.log(ops.abs(x))

    return kormos.minimize(loss, [w], method)


@pytest.mark.parametrize("start", [-1.0, 20.0])
@pytest.mark.parametrize("method", ["bfgs", "lbfgs"])
@pytest.mark.parametrize("error", [TypeError, KeyError, OSError])
def test_a_mistake_is_raised_wherever_it_is_met(error, method, start, float64):
    with pytest.raises(Exception, match="what the test raises") as caught:
        minimized_by_python(error, start, method)
    # TensorFlow and JAX raise their own exception, which quotes it.
    assert error.__name__ in caught.exconly()


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError, np.linalg.LinAlgError, ValueError, Refused],
)
def test_python_code_may_refuse_a_point(error, float64):
    result = minimized_by_python(error, 20.0)
    assert result.success, result
    assert result.loss == pytest.approx(2 - 2 * np.log(2), abs=1e-8)
    assert f"raised {error.__name__} " in result.message
    assert "what the test raises" in result.message


@pytest.mark.skipif(
    BACKEND == "torch", reason="it runs Python code before there is a fit"
)
@pytest.mark.parametrize("error", [ZeroDivisionError, np.linalg.LinAlgError])
def test_numerics_of_python_code_that_fail_at_the_start(error, float64):
    with pytest.warns(kormos.ConvergenceWarning, match="non-finite"):
        result = minimized_by_python(error, -1.0)
    assert result.status == "non-finite"
    assert "what the test raises" in result.message


@pytest.mark.parametrize("error", [ValueError, Refused])
def test_python_code_that_refuses_the_start_raises(error, float64):
    with pytest.raises(Exception, match="what the test raises"):
        minimized_by_python(error, -1.0)


# Failures that are not numerical


def test_a_point_with_nothing_around_it(float64):
    """Every trial fails; the start is kept, and no success is claimed."""
    start = 1.0
    w = keras.Variable(start, dtype="float64")
    with pytest.warns(kormos.ConvergenceWarning):
        result = kormos.minimize(
            lambda: w**2 + 0 * guarded(1e-30 - (w - start) ** 2), [w]
        )
    assert not result.success
    assert array(w) == start
    assert result.loss == 1


def test_an_error_in_a_callback_ends_the_run(float64):
    class Ours(Exception):
        pass

    def fail(*args):
        raise Ours

    for name in ("callback", "loss_callback"):
        w = keras.Variable(20.0, dtype="float64")
        with pytest.raises(Ours):
            kormos.minimize(lambda w=w: w - 2 * ops.log(w), [w], **{name: fail})


@pytest.mark.parametrize("method", ["l-bfgs-b", "lm"])
def test_data_that_can_no_longer_be_read_end_the_fit(method):
    class Lost(OSError):
        pass

    class Batches(keras.utils.PyDataset):
        reads = 0

        @property
        def num_batches(self):
            return 2

        def __getitem__(self, index):
            self.reads += 1
            if self.reads > 20:
                raise Lost
            return LINE[index::2], np.sin(LINE[index::2])

    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(3, "tanh"), layers.Dense(1)]
    )
    model.compile(optimizer=method, loss="mse")
    with pytest.raises(Lost):
        kormos.fit(model, Batches(), stream=True, epochs=30, verbose=0)
    assert np.isfinite(model.get_weights()[0]).all()


def test_a_constraint_that_raises(float64):
    w = keras.Variable([3.0, 3.0], dtype="float64")
    result = kormos.minimize(
        lambda: ops.sum((w - 0.1) ** 2),
        [w],
        "slsqp",
        constraints={
            "type": "ineq",
            "fun": lambda: ops.log(guarded(w[0])) + ops.log(w[1]),
        },
    )
    assert result.success, result
    # The nearest point to (.1, .1) with a product of 1 or more.
    np.testing.assert_allclose(array(w), [1, 1], rtol=1e-5)
