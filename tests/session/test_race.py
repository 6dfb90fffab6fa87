"""Several starts that race against one another."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
import nist
from kormos.objective.keras_model.initial_weights import draw_weights
from kormos.optimizers import Chain
from kormos.session import race
from kormos.session import runners


def hill(v):
    # Minima at -1, of loss -1, and near 3, of loss -2.
    return keras.ops.sum(
        -keras.ops.exp(-((v + 1) ** 2)) - 2 * keras.ops.exp(-((v - 3) ** 2))
    )


pytestmark = pytest.mark.usefixtures("float64")


def minimized(**settings):
    v = keras.Variable([-1.5], dtype="float64")
    result = kormos.minimize(lambda: hill(v), [v], verbose=0, **settings)
    return result, float(np.array(v)[0])


def test_the_best_of_several_starts_is_kept():
    result, end = minimized(starts=np.array([[-2.0], [2.5], [-0.5]]))
    assert result.success
    assert end == pytest.approx(3.0, abs=1e-5)
    assert result.loss == pytest.approx(-2 - np.exp(-16.0), abs=1e-6)
    assert [r.status for r in result.restarts].count("winner") == 1
    assert result.restarts[2].status == "winner"
    assert result.evaluations > sum(r.evaluations for r in result.restarts)


def test_the_progress_shows_the_race(capsys):
    """A line for each round, the first of which has the user's own start."""
    v = keras.Variable([-1.5], dtype="float64")
    starts = np.array([[-2.0], [2.5], [-0.5], [2.0]])
    settings = {"method": "lbfgs", "starts": starts}
    kormos.minimize(lambda: hill(v), [v], verbose=2, **settings)
    lines = [
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if " starts, losses from " in line
    ]
    assert lines[0][0] == "5"
    for words in lines:
        best, worst = float(words[4]), float(words[-1])
        assert -2.0001 <= best <= worst < 0
    # Two of the starts are in the deeper valley.
    assert {words[6].strip(")") for words in lines} <= {"2", "4"}
    kormos.minimize(lambda: hill(v), [v], verbose=0, **settings)
    assert capsys.readouterr().out == ""


def test_further_starts_do_not_compile_again():
    def calls_with(count):
        calls = []
        v = keras.Variable([-1.5], dtype="float64")

        def loss():
            calls.append(None)
            return hill(v) + 0.01 * count

        starts = np.linspace(-2.0, 4.0, count)[:, None]
        result = kormos.minimize(loss, [v], "lbfgs", starts=starts, verbose=0)
        assert len(result.restarts) == count + 1
        return len(calls)

    assert calls_with(3) == calls_with(12)


def test_ends_at_one_minimum_are_told_from_others():
    ends = [(3.0, "converged"), (-1.0, "noise floor"), (3.0001, "converged")]
    ends.append((2.0, "evaluation limit"))
    far = np.array([100.0])
    field = [
        runners.Runner(i, far, np.array([end]), float(i), status=status)
        for i, (end, status) in enumerate(ends)
    ]
    table = runners.table(field, field[0])
    assert [row.minimum for row in table] == [0, 1, 0, None]
    statuses = [row.status for row in table]
    assert statuses == ["winner", "noise floor", "converged", "left behind"]


def test_ends_at_a_minimum_at_zero_are_the_same(float64):
    v = keras.Variable(np.full(2, 0.7))
    starts = np.array([[1.0, -0.5], [-0.3, 0.8], [0.5, 0.5]])
    result = kormos.minimize(
        lambda: ops.sum(ops.cosh(v)), [v], starts=starts, verbose=0
    )
    found = {row.minimum for row in result.restarts} - {None}
    assert found == {0}


def test_starts_are_drawn_within_bounds_and_by_seed():
    seen = []

    def sample(count, rng):
        points = rng.uniform(-4, 4, (count, 1))
        seen.append(points)
        return points

    first = minimized(restarts=5, starts=sample, seed=3, bounds={".*": (-2, 2)})
    again = minimized(restarts=5, starts=sample, seed=3, bounds={".*": (-2, 2)})
    np.testing.assert_array_equal(*seen)
    assert first[0].loss == again[0].loss
    assert all(abs(r.theta[0]) <= 2 for r in first[0].restarts)
    drawn, _ = minimized(restarts=6, bounds={".*": (-4, 4)})
    assert len(drawn.restarts) == 6


@pytest.mark.parametrize("name", ["Misra1a", "MGH10", "Eckerle4", "Hahn1"])
def test_hard_starts_of_nist_reach_the_certified_minimum(name):
    (problem,) = [p for p in nist.problems() if p.name == name]
    hard, easy = map(np.array, problem.starts)
    middle, half = (hard + easy) / 2, 5 * np.abs(hard - easy)
    evaluations = []
    for start, settings in (
        (easy, {}),
        (
            hard,
            {
                "restarts": 8,
                "starts": lambda count, rng: rng.uniform(
                    middle - half, middle + half, (count, len(hard))
                ),
            },
        ),
    ):
        b = keras.Variable(start, dtype="float64")
        result = kormos.least_squares(
            lambda b=b: problem.residuals(b), [b], verbose=0, **settings
        )
        evaluations.append(result.evaluations)
    assert problem.digits(b) >= 6
    assert evaluations[1] <= 8 * evaluations[0]


def test_a_race_of_a_model_keeps_the_best_weights():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (60, 2)).astype("float32")
    y = np.sin(2 * x[:, :1]) * x[:, 1:]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(6, "tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile("lm", "mse")
    history = kormos.fit(model, x, y, epochs=30, verbose=0, restarts=6)
    result = history.result
    assert len(result.restarts) == 6
    # The last steps of 'lm' follow the gradient, below the loss's rounding.
    assert result.loss <= min(r.loss for r in result.restarts) * (1 + 1e-10)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        result.loss, rel=1e-5
    )


def test_weights_are_drawn_by_the_layers_own_initializers():
    model = keras.Sequential(
        [
            keras.Input((40,)),
            keras.layers.Dense(
                50, kernel_initializer=keras.initializers.RandomNormal(3.0, 0.1)
            ),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1, bias_initializer="ones"),
        ]
    )
    drawn = draw_weights(model, np.random.default_rng(0))
    kernel, bias, gamma, beta, last, ones = drawn
    assert kernel.mean() == pytest.approx(3.0, abs=0.02)
    assert kernel.std() == pytest.approx(0.1, abs=0.01)
    assert not bias.any() and not beta.any()
    assert (gamma == 1).all() and (ones == 1).all()
    limit = np.sqrt(6 / 51)
    assert np.abs(last).max() <= limit
    other = draw_weights(model, np.random.default_rng(1))
    assert not np.array_equal(kernel, other[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 3}, "needs `starts`"),
        ({"restarts": 0}, "restarts"),
        ({"starts": lambda count, rng: None}, "says how many"),
        ({"starts": np.zeros((3, 2))}, r"\(count, 1\)"),
        ({"seed": "x"}, "`seed` must be an integer, 0 or more"),
    ],
)
def test_starts_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        minimized(**settings)


def test_the_epochs_of_a_stage_are_counted_over_the_rounds():
    v = keras.Variable([2.0], dtype="float64")
    # Each step of the first stage multiplies the distance to 1 by 0.8. The
    # second stage does not move.
    chain = Chain(
        [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.0)],
        epochs=[6, 30],
        full_batch=True,
    )
    result = kormos.minimize(
        lambda: keras.ops.sum((v - 1) ** 2),
        [v],
        chain,
        starts=np.array([[3.0], [5.0], [9.0], [11.0]]),
        verbose=0,
    )
    ends = 1 + np.array([1.0, 2.0]) * 0.8**6
    assert float(np.array(v)[0]) == pytest.approx(ends[0], rel=1e-7)
    assert result.restarts[1].theta[0] == pytest.approx(ends[1], rel=1e-7)
    assert result.restarts[0].status == "winner"
    assert result.restarts[0].iterations > 6
    assert result.restarts[0].iterations + result.iterations == 36


def test_a_number_of_all_iterations_is_counted_over_the_rounds_too():
    v = keras.Variable([2.0], dtype="float64")
    chain = Chain([keras.optimizers.SGD(0.1)] * 2, full_batch=True)
    result = kormos.minimize(
        lambda: keras.ops.sum((v - 1) ** 2),
        [v],
        chain,
        max_iterations=20,
        starts=np.array([[3.0], [5.0], [9.0]]),
        verbose=0,
    )
    assert result.restarts[0].iterations + result.iterations == 20
    assert float(np.array(v)[0]) == pytest.approx(1 + 0.8**20, rel=1e-7)


def test_the_epochs_of_a_stage_have_their_steps_in_a_race():
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
    )
    model.trainable_variables[0].assign([[1.01]])
    model.compile(
        Chain(
            [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.0)],
            epochs=[3, 40],
            full_batch=True,
        ),
        "mse",
    )
    x = np.ones((4, 1))
    history = model.fit(x, x, steps_per_epoch=4, restarts=3, seed=1, verbose=0)
    (winner,) = [r for r in history.result.restarts if r.status == "winner"]
    assert winner.iterations // 4 + len(history.epoch) == 43


def test_a_feasible_start_wins_against_a_lower_loss():
    def run(**kwargs):
        v = keras.Variable(np.array([3.0]), dtype="float32")
        result = kormos.minimize(
            lambda: 0.01 * keras.ops.sum((v + 1.0) ** 2),
            [v],
            constraints={
                "type": "eq",
                "fun": lambda: (v[0] + 1.0) ** 2 * (v[0] - 3.0) - 0.1,
            },
            precision="float64",
            **kwargs,
        )
        return result, float(v.numpy()[0])

    result, alone = run()
    assert result.success
    # A run from this start only comes close to satisfying the constraint.
    result, found = run(starts=np.array([[-0.9]]))
    assert result.success
    assert found == pytest.approx(alone, rel=1e-6)


def test_an_interrupt_ends_the_race_and_the_run(monkeypatch):
    calls = []

    class Interrupted(race.Session):
        def __call__(self):
            result = super().__call__()
            calls.append(result)
            if len(calls) == 3:
                result.status = "interrupted"
            return result

    monkeypatch.setattr(race, "Session", Interrupted)
    result, _ = minimized(restarts=6, bounds={".*": (-4, 4)})
    assert result.status == "interrupted" and "interrupted" in result.message
    # Three starts of the race, and the evaluation of the best one.
    assert len(calls) == 4
    assert calls[3].evaluations == sum(c.evaluations for c in calls[:3]) + 1
    assert result.loss <= min(c.loss for c in calls[:3])


def test_losses_of_the_race_are_reported_too():
    losses = []
    result, _ = minimized(
        method="lbfgs",
        starts=np.array([[-2.0], [2.5]]),
        loss_callback=losses.append,
    )
    own = result.evaluations - sum(r.evaluations for r in result.restarts)
    # Besides these there are evaluations that verify the ends.
    assert own < len(losses) <= result.evaluations
    assert min(losses) == result.loss


def test_a_race_that_has_gone_on_in_float64_says_so():
    rng = np.random.default_rng(0)
    x = np.linspace(0.0, 1.0, 40).astype("float32")
    y = (np.exp(-3 * x) + 0.01 * rng.normal(size=40)).astype("float32")
    v = keras.Variable([1.0, 1.0], dtype="float32")
    result = kormos.least_squares(
        lambda data: v[0] * keras.ops.exp(-v[1] * data["x"]) - data["y"],
        [v],
        data={"x": x, "y": y},
        starts=np.array([[0.8, 2.0], [1.0, 5.0]]),
        precision="auto",
        verbose=0,
    )
    assert result.float64_from == 0
    assert "float64 from iteration 0" in result.message
