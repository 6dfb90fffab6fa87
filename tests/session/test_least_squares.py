"""`kormos.least_squares`: residuals of any function over any variables."""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos
from conftest import BACKEND
from kormos import _least_squares
from kormos.callbacks import Resample
from kormos.objective.functions.residuals import ResidualObjective
from kormos.optimizers import LevenbergMarquardt
from kormos.statistics.robust_scale import estimated_scales

RNG = np.random.default_rng(0)

# A decay with noise.
X = np.linspace(0, 2, 20)
Y = 2 * np.exp(-1.5 * X) + 0.05 * RNG.normal(size=20)

# A line with three outliers.
LINE_X = np.linspace(-1, 1, 25)
LINE_Y = 1 + 2 * LINE_X + 0.1 * RNG.normal(size=25)
LINE_Y[[3, 12, 20]] += [4.0, -3.0, 6.0]

# SciPy's tolerances as tight as they go.
TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}


def few(first, *others):
    """The cases to test: only the first where compiling is slow."""
    return [first, *others] if BACKEND == "torch" else [first]


def value(variable):
    return np.array(ops.convert_to_numpy(variable))


def variable(x0):
    return keras.Variable(np.array(x0, dtype="float64"), dtype="float64")


def fit(residuals, x0, data=None, **kwargs):
    """Fits a float64 vector: the result and the vector.

    Args:
        residuals: function of a tensor, and of the data if there are any.
        x0: the start.
        data: the argument of `kormos.least_squares`.
        **kwargs: its other arguments.
    """
    v = variable(x0)

    def residual_fn(*data):
        return residuals(ops.convert_to_tensor(v), *data)

    result = kormos.least_squares(residual_fn, [v], data=data, **kwargs)
    return result, value(v)


def decay(b, data):
    x, y = data
    return b[0] * ops.exp(-b[1] * x) - y


def line(b, data):
    x, y = data
    return b[0] + b[1] * x - y


def line_in_numpy(b):
    return b[0] + b[1] * LINE_X - LINE_Y


def decay_by_scipy(**kwargs):
    return scipy.optimize.least_squares(
        lambda b: b[0] * np.exp(-b[1] * X) - Y, [1.0, 1.0], **TIGHT, **kwargs
    )


def test_linear_residuals_take_one_step(float64):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 3))
    y = x @ [1.0, 2.0, 3.0] + 0.1 * rng.normal(size=30)
    result, b = fit(
        lambda b, data: ops.sum(data[0] * b, axis=1) - data[1],
        [10.0, 10.0, 10.0],
        (x, y),
    )
    expected, (rss,), *_ = np.linalg.lstsq(x, y)
    assert result.success
    # More steps than the first change nothing but its rounding.
    assert result.history["trials"][0] == 1
    np.testing.assert_allclose(result.history["loss"], rss / 30, rtol=1e-12)
    np.testing.assert_allclose(b, expected, rtol=1e-12)


@pytest.mark.slow
def test_residuals_of_sizes_far_apart(float64, unconverged):
    # J is singular everywhere. `scipy.optimize` ends, and kormos must end, too.
    result, b = fit(
        lambda b: ops.stack([1e4 * b[0] * b[1], 1e-4 * b[0] * b[1]]),
        [1.0, 1.0],
    )
    assert np.isfinite(b).all()
    assert np.isfinite(result.loss)
    assert result.loss < 1e-6 * result.initial_loss


@pytest.mark.parametrize("start", few(0.0, 3.0, -100.0))
def test_a_single_residual_goes_to_a_root(float64, start):
    result, x = fit(lambda x: 5 * x**2 - 9 * x - 3, start)
    assert result.success
    roots = (9 + np.array([-1, 1]) * np.sqrt(141)) / 10
    assert np.min(np.abs(roots - x)) < 1e-12


def test_float32_needs_no_differences(unconverged):
    # Differences with a step of 1e-8 see nothing here, and stop at once.
    x = np.linspace(1, 5, 5, dtype="float32")
    k = keras.Variable(0.5, dtype="float32")
    result = kormos.least_squares(
        lambda data: k * data[0] - data[1], [k], data=(x, 2 * x)
    )
    assert result.status in ("converged", "noise floor")
    assert float(value(k)) == pytest.approx(2, rel=1e-6)


def test_points_that_the_function_holds_itself(unconverged):
    # The example of the docstring.
    x = keras.ops.linspace(0.0, 1.0, 20)
    y = 2 * keras.ops.exp(-3 * x)
    b = keras.Variable([1.0, 1.0])
    result = kormos.least_squares(
        lambda: b[0] * keras.ops.exp(-b[1] * x) - y, [b]
    )
    assert result.status in ("converged", "noise floor")
    np.testing.assert_allclose(value(b), [2, 3], rtol=1e-5)


def blocks(b, data):
    """A parabola by its slopes, its values at the ends, and a penalty."""
    x, slopes = data["inside"]
    t = data["ends"]
    ends = b[0] + b[1] * t + b[2] * t**2
    return {
        "inside": ops.stack(
            [b[1] + 2 * b[2] * x - slopes, b[2] - 1 + 0 * x], 1
        ),
        "ends": ends - ops.cos(3 * t),
        "small": 0.1 * b,
    }


BLOCKS = {
    "inside": (RNG.uniform(-1, 1, 30), RNG.normal(size=30)),
    "ends": np.array([-1.0, 1.0, 1.0]),
}
WEIGHTS = {"ends": 10.0, "small": 0.5}


def blocks_in_numpy():
    """Matrix and right-hand side of each block."""
    x, slopes = BLOCKS["inside"]
    t = BLOCKS["ends"]
    zero, one = np.zeros(30), np.ones(30)
    first = np.stack([zero, one, 2 * x], 1), slopes
    second = np.stack([zero, zero, one], 1), one
    return {
        "inside": [np.concatenate(p) for p in zip(first, second, strict=True)],
        "ends": [np.stack([t**0, t, t**2], 1), np.cos(3 * t)],
        "small": [0.1 * np.eye(3), np.zeros(3)],
    }


@pytest.mark.parametrize("reduction", few("mean", "sum"))
def test_blocks_and_their_weights(float64, reduction):
    result, b = fit(
        blocks,
        [1.0, 1.0, 1.0],
        BLOCKS,
        loss_weights=WEIGHTS,
        reduction=reduction,
        validation_data=BLOCKS,
    )
    assert result.success
    history = result.history
    weighted = sum(
        WEIGHTS.get(name, 1.0) * np.array(history[f"{name}_loss"])
        for name in ("inside", "ends", "small")
    )
    np.testing.assert_allclose(history["loss"], weighted, rtol=1e-12)
    np.testing.assert_allclose(history["val_loss"], weighted, rtol=1e-12)
    reduced = np.mean if reduction == "mean" else np.sum
    matrices, sides = [], []
    for name, (matrix, side) in blocks_in_numpy().items():
        loss = reduced((matrix @ b - side) ** 2)
        assert history[f"{name}_loss"][-1] == pytest.approx(loss, rel=1e-12)
        assert history[f"val_{name}_loss"][-1] == pytest.approx(loss, rel=1e-12)
        share = 1 / len(side) if reduction == "mean" else 1
        root = np.sqrt(WEIGHTS.get(name, 1.0) * share)
        matrices.append(root * matrix)
        sides.append(root * side)
    expected = np.linalg.lstsq(np.concatenate(matrices), np.concatenate(sides))
    np.testing.assert_allclose(b, expected[0], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", few("lm", "lbfgs"))
def test_chunks_change_nothing(float64, method, unconverged):
    fits = [
        fit(decay, [1.0, 1.0], (X, Y), method=method, batch_size=size)
        for size in few(7, 1, None)[: 3 if BACKEND == "torch" else 1]
    ]
    fits.append(fit(decay, [1.0, 1.0], (X, Y), method=method))
    losses = [result.history["loss"] for result, _ in fits]
    most = min(map(len, losses))
    assert most >= 3
    for other, (result, b) in zip(losses, fits, strict=True):
        np.testing.assert_allclose(other[:most], losses[0][:most], rtol=1e-9)
        assert result.loss == pytest.approx(fits[0][0].loss, rel=1e-9)
        np.testing.assert_allclose(b, fits[0][1], rtol=1e-6)


@pytest.mark.parametrize("method", ["lm", *few("newton-cg", "lbfgs")])
def test_every_method_ends_at_the_minimum(float64, method):
    result, b = fit(decay, [1.0, 1.0], (X, Y), method=method)
    expected = decay_by_scipy()
    assert result.success
    assert result.loss == pytest.approx(2 * expected.cost / 20, rel=1e-9)
    np.testing.assert_allclose(b, expected.x, rtol=1e-5)


@pytest.fixture
def evaluated(monkeypatch):
    """All points at which the residuals' loss is evaluated."""
    points, evaluate = [], ResidualObjective.value

    def recorded(self, theta):
        points.append(np.array(theta))
        return evaluate(self, theta)

    monkeypatch.setattr(ResidualObjective, "value", recorded)
    return points


def test_bounds_hold_everywhere(float64, evaluated):
    lower, upper = np.array([0.0, 1.6]), np.array([1.7, 5.0])
    b = variable([0.5, 4.0])
    iterates = []
    result = kormos.least_squares(
        lambda data: decay(ops.convert_to_tensor(b), data),
        [b],
        data=(X, Y),
        bounds=[(b, (lower, upper))],
        callbacks=[lambda *_: iterates.append(value(b)) and None],
    )
    expected = scipy.optimize.least_squares(
        lambda b: b[0] * np.exp(-b[1] * X) - Y,
        [0.5, 4.0],
        bounds=(lower, upper),
        **TIGHT,
    )
    assert result.success
    assert expected.active_mask.any()
    np.testing.assert_allclose(value(b), expected.x, rtol=1e-6)
    assert len(iterates) == result.iterations
    for point in [*evaluated, *iterates]:
        assert (lower <= point).all() and (point <= upper).all()


@pytest.mark.parametrize("loss", few("cauchy", "soft_l1", "huber", "arctan"))
@pytest.mark.parametrize("f_scale", few(0.3, 1.0))
def test_robust_losses_are_those_of_scipy(float64, loss, f_scale):
    result, b = fit(
        line,
        [0.5, 1.0],
        (LINE_X, LINE_Y),
        loss=loss,
        f_scale=f_scale,
        reduction="sum",
    )
    expected = scipy.optimize.least_squares(
        line_in_numpy, [0.5, 1.0], loss=loss, f_scale=f_scale, **TIGHT
    )
    assert result.success
    np.testing.assert_allclose(b, expected.x, rtol=1e-6)
    # SciPy's cost is half the sum.
    assert result.loss == pytest.approx(2 * expected.cost, rel=1e-10)


@pytest.mark.parametrize("loss", few("soft_l1", "tukey", "cauchy", "arctan"))
@pytest.mark.parametrize("optimizer", few("lm", "l-bfgs-b"))
def test_robust_losses_fit_exact_data(float64, loss, optimizer):
    """Small residuals keep their digits in every loss."""
    x = np.linspace(0.0, 3.0, 40)
    data = x, 2e-3 * np.exp(-0.7 * x)
    b = keras.Variable([1.5e-3, 1.0], dtype="float64")

    def residuals(d):
        return b[0] * ops.exp(-b[1] * d[0]) - d[1]

    result = kormos.least_squares(
        residuals, [b], optimizer, data=data, loss=loss
    )
    assert result.success, result
    np.testing.assert_allclose(value(b), [2e-3, 0.7], rtol=1e-9)


def test_tukey_ignores_an_outlier(float64):
    y = 1 + 2 * LINE_X
    y[5] += 50
    result, b = fit(line, [0.5, 1.5], (LINE_X, y), loss="tukey", f_scale=2.0)
    assert result.success
    np.testing.assert_allclose(b, [1, 2], rtol=1e-6)
    # What is beyond the scale counts as a third of its square.
    assert result.loss == pytest.approx(4 / 3 / 25, rel=1e-9)


def noisy(scale, count=200, outliers=20):
    rng = np.random.default_rng(3)
    x = np.linspace(-1, 1, count)
    y = 1 + 2 * x + scale * rng.normal(size=count)
    where = rng.choice(count, outliers, replace=False)
    y[where] += 50 * scale
    return x, y


@pytest.mark.parametrize("start", few([0.0, 0.0], [1.005, 2.0]))
def test_a_start_at_which_the_loss_is_concave(float64, start):
    x, y = noisy(1e-3)
    result, b = fit(line, start, (x, y), loss="cauchy", f_scale=1.6e-3)
    expected = scipy.optimize.least_squares(
        lambda b: b[0] + b[1] * x - y,
        start,
        loss="cauchy",
        f_scale=1.6e-3,
        **TIGHT,
    )
    assert np.abs(expected.x - [1, 2]).max() < 1e-3
    assert result.success
    np.testing.assert_allclose(b, expected.x, rtol=1e-6)


@pytest.mark.parametrize("loss", few("cauchy", "tukey"))
@pytest.mark.parametrize("scale", few(0.1, 1e-3, 10.0))
def test_the_scale_of_the_noise_is_found(float64, scale, loss, monkeypatch):
    found = []

    def recorded(*args):
        found.append(estimated_scales(*args))
        return found[-1]

    monkeypatch.setattr(_least_squares, "estimated_scales", recorded)
    x, y = noisy(scale)
    _, b = fit(line, [0.0, 0.0], (x, y), loss=loss, f_scale="auto")
    # Tukey's loss is constant beyond 4.685 standard deviations.
    deviation = found[0]["residuals"] / (4.685 if loss == "tukey" else 1)
    assert scale / 2 < deviation < 2 * scale
    # Five standard deviations of the coefficients, were all rows used.
    design = np.stack([np.ones_like(x), x], 1)
    deviations = scale * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    assert (np.abs(b - [1, 2]) < 5 * deviations).all()
    plain = np.linalg.lstsq(design, y)[0]
    assert abs(plain[0] - 1) > 20 * deviations[0]


def test_an_automatic_scale_of_squares_and_held_out_data(float64):
    # A square has no scale to be found.
    result, b = fit(
        decay,
        [1.0, 1.0],
        (X, Y),
        f_scale="auto",
        validation_data=(X, Y),
    )
    np.testing.assert_allclose(b, decay_by_scipy().x, rtol=1e-6)
    assert result.history["val_loss"][-1] == pytest.approx(result.loss)


def test_held_out_data(float64):
    x = np.linspace(0.05, 3, 7)
    y = 2 * np.exp(-1.4 * x)
    b = variable([1.0, 1.0])
    iterates = []
    result = kormos.least_squares(
        lambda data: decay(ops.convert_to_tensor(b), data),
        [b],
        data=(X, Y),
        validation_data=(x, y),
        callbacks=[lambda *_: iterates.append(value(b)) and None],
    )
    expected = [np.mean((p[0] * np.exp(-p[1] * x) - y) ** 2) for p in iterates]
    np.testing.assert_allclose(result.history["val_loss"], expected, rtol=1e-9)


def draws(rng, count=20):
    x = rng.uniform(0, 2, count)
    return x, 2 * np.exp(-1.5 * x) + 0.05 * rng.normal(size=count)


class Recorded(Resample):
    """A sampler that keeps its draws."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drawn = []

    def replace(self, objective, iteration):
        super().replace(objective, iteration)
        self.drawn.append(objective.data)


@pytest.mark.parametrize("iterations, count", few((7, 2), (6, 1), (9, 2)))
def test_points_are_drawn_between_iterations(
    float64, unconverged, iterations, count
):
    counts, iterates = [], []

    def sampler(count, rng):
        counts.append(count)
        return draws(rng, count)

    resample = Recorded(sampler, every=3)
    b = variable([1.0, 1.0])
    result = kormos.least_squares(
        lambda data: decay(ops.convert_to_tensor(b), data),
        [b],
        data=(X, Y),
        max_iterations=iterations,
        callbacks=[resample, lambda *_: iterates.append(value(b)) and None],
    )
    assert result.iterations == iterations
    assert counts == [20] * count
    points = [(X, Y), *resample.drawn]
    for i, (loss, at) in enumerate(
        zip(result.history["loss"], iterates, strict=True)
    ):
        x, y = points[i // 3]
        expected = np.mean((at[0] * np.exp(-at[1] * x) - y) ** 2)
        assert loss == pytest.approx(expected, rel=1e-9)


def test_the_radius_is_carried_over(float64, unconverged):
    # Far from the minimum, where steps are as long as the radius lets them.
    start = [100.0, 0.2]
    new = draws(np.random.default_rng(5))
    settings = {"max_iterations": 6}
    result, b = fit(
        decay,
        start,
        (X, Y),
        callbacks=[Resample(lambda count, rng: new, every=2)],
        **settings,
    )
    optimizer, v = LevenbergMarquardt(), variable(start)
    histories = []
    for data, iterations in (((X, Y), 2), (new, 4)):
        latest = kormos.least_squares(
            lambda data: decay(ops.convert_to_tensor(v), data),
            [v],
            optimizer,
            data=data,
            max_iterations=iterations,
            resume=bool(histories),
        )
        histories.append(latest.history)
        if len(histories) == 1:
            middle = value(v)
    afresh, _ = fit(decay, middle, new, max_iterations=1)
    for key in ("loss", "radius", "damping"):
        expected = histories[0][key] + histories[1][key]
        assert result.history[key] == expected
    np.testing.assert_array_equal(b, value(v))
    assert result.history["radius"][2] != afresh.history["radius"][0]


def test_candidates_are_drawn_where_residuals_are_large(float64, unconverged):
    asked = []

    def sampler(count, rng):
        asked.append(count)
        return rng.uniform(0, 1, count)

    resample = Recorded(sampler, every=1, candidates=20_000, power=2, offset=0)
    x = np.linspace(0, 1, 400)
    _, b = fit(
        lambda b, x: b + 10 * x**8,
        0.0,
        x,
        max_iterations=2,
        callbacks=[resample],
    )
    assert asked == [20_000]
    (drawn,) = resample.drawn
    assert len(drawn) == 400 == len(np.unique(drawn))
    # The first iteration takes away the mean.
    grid = np.linspace(0, 1, 10_001)
    squares = (10 * grid**8 - np.mean(10 * x**8)) ** 2
    expected = squares[grid > 0.9].sum() / squares.sum()
    assert expected > 0.75
    # Three standard deviations of the share of 400 draws, at most, are 0.075.
    assert np.mean(drawn > 0.9) == pytest.approx(expected, abs=0.1)


def test_a_sampler_may_ask_for_residuals(float64, unconverged):
    """It keeps the points with the largest residuals at the present b."""
    seen = []

    def sampler(count, rng, residuals, iteration):
        candidates = np.linspace(0, 1, 1_001)
        norms = residuals(candidates)
        seen.append((iteration, norms))
        return candidates[np.argsort(norms)[-count:]]

    x = np.linspace(0, 1, 50)
    resample = Recorded(sampler, every=1)
    fit(
        lambda b, x: b + 10 * x**8,
        0.0,
        x,
        max_iterations=2,
        callbacks=[resample],
    )
    ((iteration, norms),) = seen
    grid = np.linspace(0, 1, 1_001)
    # The first iteration takes away the mean.
    expected = abs(10 * grid**8 - np.mean(10 * x**8))
    assert iteration == 1
    np.testing.assert_allclose(norms, expected, rtol=1e-10)
    np.testing.assert_allclose(
        np.sort(resample.drawn[0]), np.sort(grid[np.argsort(expected)[-50:]])
    )


def drawn_from(candidates, count, norms):
    """Points that a `Resample` draws from candidates with these residuals."""

    class Plane:
        data = np.zeros((count, 2))

        def row_norms(self, points, key):
            return norms(points)

        def replace(self, points):
            self.data = points

    plane = Plane()
    Resample(lambda count, rng: candidates, 1, len(candidates)).replace(
        plane, 0
    )
    return plane.data


def test_points_are_spread_evenly():
    candidates = np.random.default_rng(0).random((20_000, 2))
    drawn = drawn_from(candidates, 1_600, lambda p: np.ones(len(p)))
    counts, _, _ = np.histogram2d(*drawn.T, bins=10, range=((0, 1), (0, 1)))
    # Drawn one by one, the counts of cells of 16 would vary by 16.
    assert counts.var() < 16 / 2


def test_points_are_drawn_once_and_large_residuals_for_certain():
    candidates = np.random.default_rng(0).random((2_000, 2))
    large = candidates[:, 0] > 0.99
    assert 10 < large.sum() < 40
    drawn = drawn_from(
        candidates, 200, lambda p: np.where(p[:, 0] > 0.99, 1e6, 1)
    )
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 200
    assert (drawn[:, 0] > 0.99).sum() == large.sum()


def test_the_function_is_always_given_tensors(float64, unconverged):
    def residuals(b, data):
        assert all(ops.is_tensor(a) for a in data)
        return line(b, data)

    def sampler(count, rng):
        rows = rng.choice(25, count)
        return LINE_X[rows], LINE_Y[rows]

    fit(
        residuals,
        [0.5, 1.0],
        (LINE_X, LINE_Y),
        loss="huber",
        f_scale="auto",
        validation_data=(LINE_X, LINE_Y),
        max_iterations=2,
        callbacks=[Resample(sampler, every=1, candidates=50)],
    )


def test_one_entry_of_the_data_is_drawn(float64, unconverged):
    counts = []

    def sampler(count, rng):
        counts.append(count)
        return rng.uniform(-1, 1, count), rng.normal(size=count)

    resample = Recorded(sampler, every=1, candidates=50, key="inside")
    fit(blocks, [1.0, 1.0, 1.0], BLOCKS, max_iterations=3, callbacks=[resample])
    assert counts == [50, 50]
    for drawn in resample.drawn:
        assert [len(a) for a in drawn["inside"]] == [30, 30]
        np.testing.assert_array_equal(drawn["ends"], BLOCKS["ends"])


def test_a_callback_ends_the_fit(float64):
    seen = []

    def callback(iteration, logs):
        seen.append((iteration, logs["loss"]))
        return iteration == 2

    result, _ = fit(decay, [1.0, 1.0], (X, Y), callbacks=[callback])
    assert result.status == "stopped by callback"
    assert not result.success
    assert seen == list(enumerate(result.history["loss"], 1))
    assert result.iterations == 2


def test_target_loss(float64):
    result, _ = fit(decay, [10.0, 5.0], (X, Y), target_loss=0.1)
    *before, last = [result.initial_loss, *result.history["loss"]]
    assert result.status == "target reached"
    assert result.loss == last <= 0.1 < min(before)


@pytest.mark.parametrize("every", few(None, 1))
@pytest.mark.parametrize("most", few(7, 6, 1))
def test_max_evals(float64, most, every, unconverged):
    callbacks = []
    if every:
        callbacks = [Resample(lambda count, rng: draws(rng, count), every)]
    result, _ = fit(
        decay, [100.0, 0.2], (X, Y), max_evals=most, callbacks=callbacks
    )
    assert result.status == "evaluation limit"
    assert result.evaluations <= most


@pytest.mark.parametrize("method", few("lm", "lbfgs"))
def test_five_and_five_iterations_are_ten(float64, method, unconverged):
    def run(optimizer, v, iterations, resume=False):
        return kormos.least_squares(
            lambda data: decay(ops.convert_to_tensor(v), data),
            [v],
            optimizer,
            data=(X, Y),
            max_iterations=iterations,
            resume=resume,
        )

    start = [100.0, 0.2]
    one, two = variable(start), variable(start)
    straight = run(kormos.optimizers.get(method), one, 10)
    optimizer = kormos.optimizers.get(method)
    first = run(optimizer, two, 5)
    second = run(optimizer, two, 5, resume=True)
    assert straight.iterations == 10
    losses = first.history["loss"] + second.history["loss"]
    assert losses == straight.history["loss"]
    np.testing.assert_array_equal(value(one), value(two))


def test_resuming_what_has_converged(float64):
    optimizer, v = LevenbergMarquardt(gtol=0.0, ftol=1e-3), variable([1.0, 1.0])

    def run(resume):
        return kormos.least_squares(
            lambda data: decay(ops.convert_to_tensor(v), data),
            [v],
            optimizer,
            data=(X, Y),
            resume=resume,
        )

    first = run(resume=False)
    assert first.status == "converged"
    again = run(resume=True)
    assert again.success
    assert again.loss == pytest.approx(first.loss, rel=1e-12)


def mixed(b, data):
    u = decay(b, data)
    return u - ops.mean(u)


@pytest.mark.parametrize(
    "residuals, data, settings, match",
    [
        (lambda b, data, more: b, (X, Y), {}, "function of the data"),
        (lambda b, data: b, None, {}, "function of no arguments"),
        (lambda b: b, (X, Y), {}, "function of the data"),
        (lambda b: None, None, {}, "must return a tensor"),
        (decay, (X, "y"), {}, "hold arrays of real numbers"),
        (decay, (X, Y), {"loss": "l1"}, "`loss` must be one of.*'l1'"),
        (decay, (X, Y), {"reduction": "max"}, "'mean' or 'sum'.*'max'"),
        (decay, (X, Y), {"f_scale": 0.0}, "`f_scale` must be a positive"),
        (decay, (X, Y), {"f_scale": -1}, "`f_scale` must be a positive.*-1"),
        (decay, (X, Y), {"f_scale": "big"}, "`f_scale` must be.*'big'"),
        (decay, (X, Y), {"f_scale": np.inf}, "`f_scale` must be.*inf"),
        (decay, (X, Y), {"loss_weights": {"u": 1}}, "`loss_weights`.*'u'"),
        (decay, (X, Y), {"batch_size": 0}, "`batch_size`.*0"),
        (decay, (X, Y), {"callbacks": print}, "`callbacks` must be a list"),
        (decay, (X, Y), {"callbacks": ["stop"]}, "`callbacks` must be a list"),
        (decay, (X, Y), {"validation_data": X}, "`validation_data`"),
        (mixed, (X, Y), {}, "row"),
        (mixed, (X, Y), {"method": "lbfgs"}, "row"),
    ],
)
def test_unusable_arguments_raise(float64, residuals, data, settings, match):
    v = variable([1.0, 1.0])

    def one(data):
        return residuals(ops.convert_to_tensor(v), data)

    def none():
        return residuals(ops.convert_to_tensor(v))

    def two(data, more):
        return residuals(ops.convert_to_tensor(v), data, more)

    count = residuals.__code__.co_argcount - 1
    with pytest.raises(ValueError, match=match):
        kormos.least_squares(
            (none, one, two)[count], [v], data=data, **settings
        )
    np.testing.assert_array_equal(value(v), [1, 1])


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"sampler": 3}, "`sampler` must be a function.*3"),
        ({"every": 0}, "`every` must be an integer"),
        ({"candidates": 0}, "`candidates` must be an integer"),
    ],
)
def test_unusable_samplers_raise(settings, match):
    arguments = {"sampler": lambda count, rng: X, "every": 1, **settings}
    with pytest.raises(ValueError, match=match):
        Resample(**arguments)


@pytest.mark.parametrize(
    "data, settings, match",
    [
        ((X, Y), {"candidates": 5}, "`candidates`"),
        ((X, Y), {"key": "inside"}, "`key`"),
        (None, {}, "`data`|`callbacks`"),
    ],
)
def test_samplers_that_do_not_fit_the_data_raise(
    float64, unconverged, data, settings, match
):
    def residuals(b, data=(X, Y)):
        return decay(b, [ops.convert_to_tensor(a) for a in data])

    resample = Resample(lambda count, rng: draws(rng, count), 1, **settings)
    with pytest.raises(ValueError, match=match):
        fit(residuals, [1.0, 1.0], data, callbacks=[resample])


def test_a_loss_alone_is_for_other_methods(float64):
    v = variable([7.0])
    with pytest.raises(ValueError, match="kormos.least_squares"):
        kormos.minimize(lambda: ops.sum(v**2), [v], method="lm")
    np.testing.assert_array_equal(value(v), [7.0])


def test_constraints_are_refused(float64):
    v = variable([1.0, 1.0])
    optimizer = LevenbergMarquardt()
    optimizer.constraints = {"type": "eq", "fun": lambda: v[0] - 1}
    with pytest.raises(ValueError, match="'lm' does not support constraints"):
        kormos.least_squares(
            lambda data: decay(ops.convert_to_tensor(v), data),
            [v],
            optimizer,
            data=(X, Y),
        )
    np.testing.assert_array_equal(value(v), [1, 1])


def test_a_variable_is_a_block_by_itself(float64):
    v = keras.Variable([1.0, 2.0], dtype="float64")
    result = kormos.least_squares(lambda: {"p": v, "q": v - 1.0}, [v])
    np.testing.assert_allclose(value(v), [0.5, 0.5])
    assert result.loss == pytest.approx(0.5)


@pytest.mark.parametrize("precision", [None, "float64", "auto"])
def test_the_example_of_the_docstring(precision):
    x = np.linspace(0.0, 1.0, 20)
    y = 2 * np.exp(-3 * x)
    b = keras.Variable([1.0, 1.0])
    result = kormos.least_squares(
        lambda data: b[0] * keras.ops.exp(-b[1] * data["x"]) - data["y"],
        [b],
        data={"x": x, "y": y},
        precision=precision,
    )
    assert result.success
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(b), [2.0, 3.0], rtol=1e-5
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("order", [1, -1])
def test_data_keep_the_digits_of_the_finest_variable(order):
    x = np.linspace(0.0, 1.0, 7)
    y = np.array([0.1, 0.7, 0.2, 0.9, 1.1, 0.3, 1.3])
    coarse = keras.Variable(0.0, dtype="float32")
    fine = keras.Variable(0.0, dtype="float64")
    kormos.least_squares(
        lambda d: {
            "line": fine * d["x"] - d["y"],
            "own": ops.reshape(coarse - 1.0, (1,)),
        },
        [coarse, fine][::order],
        data={"x": x, "y": y},
    )
    slope = float(ops.convert_to_numpy(fine))
    assert slope == pytest.approx(x @ y / (x @ x), rel=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_an_optimum_at_a_bound_has_no_kink(seed):
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, 20)
    size, rate = rng.uniform(1, 3), rng.uniform(2, 4)
    y = size * np.exp(-rate * t) + 0.01 * rng.normal(size=20)
    v = keras.Variable([1.0, 1.0], name="p")
    result = kormos.least_squares(
        lambda data: v[0] * ops.exp(-v[1] * data["t"]) - data["y"],
        [v],
        data={"t": t.astype("float32"), "y": y.astype("float32")},
        bounds={"p": (0, [None, 0.8 * rate])},
        verbose=0,
    )
    right = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * t) - y,
        [1.0, 1.0],
        bounds=(0, [np.inf, 0.8 * rate]),
    )
    assert result.success, result
    np.testing.assert_allclose(np.array(v), right.x, rtol=1e-4)


@pytest.mark.parametrize("points", [7, 15])
def test_residuals_of_second_derivatives(points, float64):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((1,), dtype="float64"),
            keras.layers.Dense(5, "tanh", dtype="float64"),
            keras.layers.Dense(1, dtype="float64"),
        ]
    )
    x = ops.convert_to_tensor(np.linspace(0, 1, points)[:, None])

    def slope(fn, z):
        return ops.jvp(fn, (z,), (ops.ones_like(z),))[1]

    def residual_fn():
        return slope(lambda z: slope(net, z), x) + net(x) - 1

    found = kormos.least_squares(
        residual_fn, net.trainable_variables, max_iterations=40, verbose=0
    )
    # u = 1 solves it exactly, and many networks come close.
    assert found.loss < 1e-9 * found.initial_loss
