"""Weights of blocks, and data, that follow the iterations."""

import keras
import numpy as np
import pytest

import kormos

pytestmark = pytest.mark.usefixtures("float64")


def two_blocks(v):
    # Weighted by a and b, the minimum is at (a + 3 b) / (a + b).
    return lambda: {"near": v - 1, "far": v - 3}


def fitted(**settings):
    v = keras.Variable([0.0], dtype="float64")
    result = kormos.least_squares(two_blocks(v), [v], verbose=0, **settings)
    return float(np.array(v)[0]), result


def test_weights_of_a_function_are_used_from_the_start():
    end, result = fitted(
        loss_weights=lambda iteration, residuals: {"near": 3.0, "far": 1.0}
    )
    assert end == pytest.approx((3 + 3) / 4)
    assert result.success


def test_weights_follow_the_iterations_and_the_residuals():
    seen = []

    def weights(iteration, residuals):
        seen.append(
            (iteration, {k: float(r[0, 0]) for k, r in residuals.items()})
        )
        return {"near": float(len(seen)), "far": 1.0}

    end, _ = fitted(
        callbacks=[kormos.callbacks.Reweigh(weights, every=2)],
        method=kormos.optimizers.Chain(
            [keras.optimizers.SGD(0.05)], full_batch=True
        ),
        max_iterations=7,
    )
    assert [iteration for iteration, _ in seen] == [2, 4, 6]
    expected = 0.0
    for step in range(7):
        # The loss is the mean of each block's squares, times its weight.
        near = max(1.0, float(step // 2))
        expected -= 0.05 * 2 * (near * (expected - 1) + (expected - 3))
        if step == 1:
            assert seen[0][1] == pytest.approx(
                {"near": expected - 1, "far": expected - 3}
            )
    assert end == pytest.approx(expected)


@pytest.mark.parametrize(
    "weights", [{"nowhere": 1.0}, {"near": -1.0}, {"near": np.nan}, 3.0]
)
def test_weights_that_cannot_be_used_are_refused(weights):
    with pytest.raises(ValueError, match="dict of weights"):
        fitted(loss_weights=lambda iteration, residuals: weights)


def test_weights_of_a_stage_and_of_a_function_are_refused():
    chain = kormos.optimizers.Chain(
        ["lbfgs", "lm"], loss_weights=[None, {"near": 2.0}]
    )
    with pytest.raises(ValueError, match="change in all stages"):
        fitted(
            method=chain, loss_weights=lambda iteration, residuals: {"far": 2.0}
        )


def test_a_sampler_may_ask_for_the_iteration():
    asked = []

    def sampler(count, rng, iteration):
        asked.append((count, iteration))
        return rng.uniform(size=(count, 1))

    v = keras.Variable([0.5], dtype="float64")
    kormos.least_squares(
        lambda data: keras.ops.sin(v * data),
        [v],
        data=np.ones((5, 1)),
        callbacks=[kormos.callbacks.Resample(sampler, every=3)],
        method=kormos.optimizers.Chain(
            [keras.optimizers.SGD(0.1)], full_batch=True
        ),
        max_iterations=8,
        verbose=0,
    )
    assert asked == [(5, 3), (5, 6)]
