"""`kormos.minimize` of a loss of rows of data."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos

ROWS = 200


@pytest.fixture
def counts(float64):
    """A Poisson regression: its rows, its variable and its loss of rows."""
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(ROWS), rng.normal(size=(ROWS, 2))])
    y = rng.poisson(np.exp(x @ [0.3, -1.0, 0.7])).astype("float64")
    w = keras.Variable(np.zeros(3), name="w")

    def losses(data):
        eta = ops.matmul(data["x"], w)
        return ops.exp(eta) - data["y"] * eta

    return {"x": x, "y": y}, w, losses


def maximum_likelihood(x, y, ridge=0.0):
    """The estimate by Newton's method, and the information there."""
    w = np.zeros(x.shape[1])
    for _ in range(50):
        mean = np.exp(x @ w)
        matrix = (x * mean[:, None]).T @ x + ridge * np.eye(len(w))
        w = w - np.linalg.solve(matrix, x.T @ (mean - y) + ridge * w)
    return w, matrix


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", [None, 64])
def test_the_estimate_is_that_of_newtons_method(counts, batch_size, reduction):
    data, w, losses = counts
    expected, _ = maximum_likelihood(**data)
    result = kormos.minimize(
        losses, [w], data=data, batch_size=batch_size, reduction=reduction
    )
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(w), expected, rtol=1e-7)
    eta = data["x"] @ expected
    loss = getattr(np, reduction)(np.exp(eta) - data["y"] * eta)
    assert result.loss == pytest.approx(loss, rel=1e-12)


def test_a_penalty_is_a_block_of_its_own(counts):
    data, w, losses = counts
    result = kormos.minimize(
        lambda rows: {
            "fit": losses(rows),
            "penalty": 2 / ROWS * ops.sum(w**2),
        },
        [w],
        data=data,
    )
    expected, _ = maximum_likelihood(**data, ridge=4.0)
    np.testing.assert_allclose(ops.convert_to_numpy(w), expected, rtol=1e-7)
    assert result.history["penalty_loss"][-1] == pytest.approx(
        2 / ROWS * np.sum(expected**2)
    )


def test_a_summary_knows_the_rows(counts):
    data, w, losses = counts
    result = kormos.minimize(losses, [w], data=data, reduction="sum")
    estimate, information = maximum_likelihood(**data)
    inverse = np.linalg.inv(information)
    x, y = data["x"], data["y"]
    scores = x * (np.exp(x @ estimate) - y)[:, None]
    sandwich = inverse @ scores.T @ scores @ inverse
    for kind, covariance in (("classical", inverse), ("HC0", sandwich)):
        summary = result.summary(covariance=kind)
        np.testing.assert_allclose(
            summary.standard_errors,
            np.sqrt(np.diag(covariance)),
            rtol=1e-6,
        )


def test_hessian_products_are_those_of_all_rows(counts):
    data, w, losses = counts
    kormos.minimize(losses, [w], "trust-ncg", data=data, batch_size=32)
    expected, _ = maximum_likelihood(**data)
    np.testing.assert_allclose(ops.convert_to_numpy(w), expected, rtol=1e-7)


def test_new_rows_are_drawn(counts):
    data, w, losses = counts
    twice = {k: np.concatenate([v, v[:50]]) for k, v in data.items()}
    resample = kormos.callbacks.Resample(lambda count, rng: twice, every=2)
    kormos.minimize(losses, [w], data=data, callbacks=[resample])
    expected, _ = maximum_likelihood(**twice)
    np.testing.assert_allclose(ops.convert_to_numpy(w), expected, rtol=1e-7)


def test_a_mean_is_no_loss_of_rows(counts):
    data, w, losses = counts
    with pytest.raises(ValueError, match="`loss_fn` must return a value.*row"):
        kormos.minimize(lambda rows: ops.mean(losses(rows)), [w], data=data)


def test_a_function_of_nothing_takes_no_data(counts):
    data, w, _ = counts
    with pytest.raises(ValueError, match="`loss_fn` must be a function of the"):
        kormos.minimize(lambda: ops.sum(w**2), [w], data=data)


def test_rows_have_no_gauss_newton_matrix(counts):
    data, w, losses = counts
    with pytest.raises(ValueError, match="Gauss-Newton.*losses of rows"):
        kormos.minimize(losses, [w], "lm", data=data)


@pytest.mark.parametrize(
    "settings", [{"batch_size": 5}, {"reduction": "sum"}, {"reduction": "max"}]
)
def test_arguments_of_rows_need_rows(counts, settings):
    _, w, _ = counts
    with pytest.raises(ValueError, match="reduction"):
        kormos.minimize(lambda: ops.sum(w**2), [w], **settings)
