"""Likelihoods of free variables: summaries after `minimize`."""

import keras
import numpy as np
import pytest
import scipy.special
import statsmodels.api as sm
from keras import ops
from statsmodels.miscmodels.ordinal_model import OrderedModel
from statsmodels.tools.numdiff import approx_hess_cs

import kormos

pytestmark = pytest.mark.usefixtures("float64")

ROWS = 150
CLOSE = {"rel": 1e-6, "abs": 1e-9}
# To the noise floor, so that estimates have all digits.
TIGHT = kormos.optimizers.BFGS(gtol=1e-16, ftol=0.0)


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, "float64"))


def fitted(by_row, size, reduce=ops.mean, start=0.0, rows=None):
    """Fits a function `(vector, rows)`; returns the `summary` method.

    Args:
        by_row: function of a vector and of rows that returns the negative
            log-likelihood of each row.
        size: the number of parameters.
        reduce: how the loss reduces the rows.
        start: the start of every parameter.
        rows: arrays.
    """
    v = keras.Variable(np.full(size, start), dtype="float64", name="b")
    rows = [tensor(a) for a in rows]

    def losses():
        return by_row(ops.convert_to_tensor(v), *rows)

    result = kormos.minimize(lambda: reduce(losses()), [v], TIGHT)
    assert result.success
    return lambda **settings: result.summary(losses=losses, **settings)


def logit(b, x, y):
    z = ops.matmul(x, b)
    return ops.softplus(z) - y * z


def weighted_logit(b, x, y, w):
    return w * logit(b, x, y)


class Choice:
    """A logit's data."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.x = sm.add_constant(rng.normal(size=(ROWS, 2)))
        z = self.x @ [0.3, 1.0, -0.7]
        self.y = rng.binomial(1, 1 / (1 + np.exp(-z)))
        self.groups = rng.integers(0, 12, ROWS)
        self.counts = rng.integers(1, 4, ROWS)


@pytest.mark.parametrize("reduce", [ops.mean, ops.sum])
def test_a_mean_and_a_sum_of_rows_have_the_errors_of_a_logit(reduce):
    data = Choice(1)
    summary = fitted(logit, 3, reduce, rows=[data.x, data.y])
    model = sm.Logit(data.y, data.x)
    for kind, cov_type in (
        ("classical", "nonrobust"),
        ("hessian", "nonrobust"),
        ("HC0", "HC0"),
        ("cluster", "cluster"),
    ):
        groups = {"groups": data.groups} if kind == "cluster" else {}
        found = summary(covariance=kind, **groups)
        expected = model.fit(
            disp=0, tol=1e-13, cov_type=cov_type, cov_kwds=groups
        )
        assert found.estimates == pytest.approx(expected.params, **CLOSE)
        assert found.standard_errors == pytest.approx(expected.bse, **CLOSE)
        assert found.log_likelihood == pytest.approx(expected.llf, **CLOSE)
        assert found.bic == pytest.approx(expected.bic, **CLOSE)


def test_counts_of_rows_equal_repeated_rows():
    data = Choice(2)
    places = np.repeat(np.arange(ROWS), data.counts)
    count = int(data.counts.sum())
    v = keras.Variable(np.zeros(3), dtype="float64")
    rows = [tensor(a) for a in (data.x, data.y, data.counts)]

    def losses():
        return weighted_logit(ops.convert_to_tensor(v), *rows)

    result = kormos.minimize(lambda: ops.sum(losses()) / count, [v], TIGHT)
    found = result.summary(losses=losses, observations=count)
    expected = sm.Logit(data.y[places], data.x[places]).fit(disp=0, tol=1e-13)
    assert found.standard_errors == pytest.approx(expected.bse, **CLOSE)
    assert found.log_likelihood == pytest.approx(expected.llf, **CLOSE)
    assert found.bic == pytest.approx(expected.bic, **CLOSE)
    assert found.observations == count


def test_the_number_of_rows_is_enough():
    data = Choice(3)
    v = keras.Variable(np.zeros(3), dtype="float64")
    rows = [tensor(a) for a in (data.x, data.y)]
    result = kormos.minimize(
        lambda: ops.mean(logit(ops.convert_to_tensor(v), *rows)), [v], TIGHT
    )
    expected = sm.Logit(data.y, data.x).fit(disp=0, tol=1e-13)
    found = result.summary(observations=ROWS)
    assert found.standard_errors == pytest.approx(expected.bse, **CLOSE)
    with pytest.raises(ValueError, match="pass `observations`, or `losses`"):
        result.summary()
    with pytest.raises(ValueError, match="needs the loss of every row"):
        result.summary(observations=ROWS, covariance="HC0")
    with pytest.raises(ValueError, match="as their mean or their sum"):
        result.summary(losses=lambda: 3 * logit(v, *rows))


def negative_binomial(b, x, y, constants):
    mean = ops.exp(ops.matmul(x, b[:-1]))
    alpha = b[-1]
    size = 1 / alpha
    # log Gamma(y + size) - log Gamma(size), of whole numbers y below 40.
    steps = tensor(np.arange(40.0))
    terms = ops.log(steps + size)
    logs = ops.sum(
        ops.where(steps[None] < y[:, None], terms[None], 0.0 * terms[None]), 1
    )
    return constants - (
        logs
        - (y + size) * ops.log(1 + alpha * mean)
        + y * ops.log(alpha * mean)
    )


def test_a_negative_binomial_regression_has_the_errors_of_statsmodels():
    rng = np.random.default_rng(4)
    x = sm.add_constant(rng.normal(size=(ROWS, 1)))
    mean = np.exp(x @ [0.5, 0.4])
    y = rng.negative_binomial(2, 2 / (2 + mean))
    constants = scipy.special.gammaln(y + 1)
    summary = fitted(negative_binomial, 3, start=0.5, rows=[x, y, constants])()
    expected = sm.NegativeBinomial(y, x).fit(
        disp=0, method="newton", maxiter=99, start_params=summary.estimates
    )
    assert summary.estimates == pytest.approx(expected.params, **CLOSE)
    assert summary.log_likelihood == pytest.approx(expected.llf, **CLOSE)
    # The Hessian of statsmodels is one of differences, right to 1e-5.
    errors = negative_binomial_errors(summary.estimates, x, y)
    assert summary.standard_errors == pytest.approx(errors, rel=1e-10)


def negative_binomial_errors(b, x, y):
    """By second derivatives of the log-likelihood, with r = 1 / alpha."""
    alpha, mean, r = b[-1], np.exp(x @ b[:-1]), 1 / b[-1]
    share = 1 + alpha * mean
    slope = scipy.special.digamma(y + r) - scipy.special.digamma(r)
    slope += np.log(r / (r + mean)) + 1 - (y + r) / (r + mean)
    curve = scipy.special.polygamma(1, y + r) - scipy.special.polygamma(1, r)
    curve += 1 / r - 1 / (r + mean) - (mean - y) / (r + mean) ** 2
    hessian = np.empty((3, 3))
    weights = mean * (1 + alpha * y) / share**2
    hessian[:2, :2] = (x * weights[:, None]).T @ x
    hessian[:2, 2] = hessian[2, :2] = x.T @ (mean * (y - mean) / share**2)
    hessian[2, 2] = -np.sum(curve / alpha**4 + 2 * slope / alpha**3)
    return np.sqrt(np.diag(np.linalg.inv(hessian)))


def weibull(b, logs, events):
    z = (logs - b[0]) * ops.exp(-b[1])
    return ops.exp(z) - events * (z - b[1] - logs)


def test_a_censored_weibull_has_the_errors_of_its_hessian():
    rng = np.random.default_rng(6)
    times = 3 * rng.weibull(1.7, ROWS)
    events = (times < 4).astype("float64")
    logs = np.log(np.minimum(times, 4))
    summary = fitted(weibull, 2, rows=[logs, events])()
    location, log_scale = summary.estimates
    scale = np.exp(log_scale)
    z = (logs - location) / scale
    # Second derivatives in the location and the logarithm of the scale.
    e = np.exp(z)
    hessian = np.empty((2, 2))
    hessian[0, 0] = np.sum(e) / scale**2
    hessian[0, 1] = np.sum(e * (z + 1) - events) / scale
    hessian[1, 0] = hessian[0, 1]
    hessian[1, 1] = np.sum(e * z * (z + 1) - events * z)
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    assert summary.standard_errors == pytest.approx(errors, rel=1e-8)
    likelihood = np.sum(events * (z - log_scale - logs) - e)
    assert summary.log_likelihood == pytest.approx(likelihood, rel=1e-10)


def ordered(b, x, y):
    z = ops.matmul(x, b[:2])
    first, second = b[2], b[2] + ops.exp(b[3])
    low, high = ops.sigmoid(first - z), ops.sigmoid(second - z)
    chances = ops.stack([low, high - low, 1 - high], axis=1)
    return -ops.log(ops.sum(chances * y, axis=1))


def test_an_ordered_logit_has_the_errors_of_statsmodels():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(ROWS, 2))
    latent = x @ [1.0, -0.5] + rng.logistic(size=ROWS)
    y = np.digitize(latent, [-0.5, 1.0])
    summary = fitted(ordered, 4, rows=[x, np.eye(3)[y]])()
    expected = OrderedModel(y, x, distr="logit").fit(
        disp=0, method="newton", maxiter=50, tol=1e-12
    )
    assert summary.estimates == pytest.approx(expected.params, **CLOSE)
    assert summary.log_likelihood == pytest.approx(expected.llf, **CLOSE)

    def total(b):
        z = x @ b[:2]
        low = 1 / (1 + np.exp(z - b[2]))
        high = 1 / (1 + np.exp(z - b[2] - np.exp(b[3])))
        chances = np.stack([low, high - low, 1 - high], axis=1)
        return -np.sum(np.log(chances[np.arange(ROWS), y]))

    # The Hessian of statsmodels is one of differences, right to 1e-5.
    hessian = approx_hess_cs(summary.estimates, total)
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    assert summary.standard_errors == pytest.approx(errors, rel=1e-9)


def conditional(b, x, chosen):
    utility = ops.matmul(x, b)
    return ops.logsumexp(utility, axis=1) - ops.sum(chosen * utility, axis=1)


def test_a_conditional_logit_has_the_errors_of_its_information():
    rng = np.random.default_rng(10)
    x = rng.normal(size=(ROWS, 3, 2))
    utility = x @ [1.0, -0.6] + rng.gumbel(size=(ROWS, 3))
    chosen = np.eye(3)[utility.argmax(axis=1)]
    summary = fitted(conditional, 2, rows=[x, chosen])()
    utility = x @ summary.estimates
    chances = np.exp(utility) / np.exp(utility).sum(axis=1, keepdims=True)
    # By each row, the covariance of the attributes over the alternatives.
    left = x - np.einsum("nk,nkp->np", chances, x)[:, None]
    information = np.einsum("nk,nkp,nkq->pq", chances, left, left)
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    assert summary.standard_errors == pytest.approx(errors, rel=1e-10)
    scores = np.einsum("nk,nkp->np", chosen - chances, x)
    assert scores.sum(axis=0) == pytest.approx([0, 0], abs=1e-8)
    found = np.sum(np.log(chances[chosen > 0]))
    assert summary.log_likelihood == pytest.approx(found, rel=1e-10)


def nested(b, x, chosen):
    """Alternatives 0 and 1 in a nest, 2 alone; b[2] is the nest's lambda."""
    utility = ops.matmul(x, b[:2])
    inside = utility[:, :2] / b[2]
    inclusive = ops.logsumexp(inside, axis=1)
    nests = ops.stack([b[2] * inclusive, utility[:, 2]], axis=1)
    of_nest = nests - ops.logsumexp(nests, axis=1, keepdims=True)
    within = inside - inclusive[:, None] + of_nest[:, :1]
    logs = ops.concatenate([within, of_nest[:, 1:]], axis=1)
    return -ops.sum(chosen * logs, axis=1)


def test_conditional_and_nested_logits_agree_with_differences():
    rng = np.random.default_rng(9)
    x = rng.normal(size=(ROWS, 3, 2))
    utility = x @ [1.0, -0.6] + rng.gumbel(size=(ROWS, 3))
    chosen = np.eye(3)[utility.argmax(axis=1)]
    summary = fitted(nested, 3, start=0.8, rows=[x, chosen])()

    def total(b):
        u = x @ b[:2]
        inside = u[:, :2] / b[2]
        inclusive = np.log(np.exp(inside).sum(axis=1))
        top = np.log(np.exp(b[2] * inclusive) + np.exp(u[:, 2]))
        logs = np.column_stack(
            [
                inside - inclusive[:, None] + (b[2] * inclusive - top)[:, None],
                u[:, 2] - top,
            ]
        )
        return -np.sum(chosen * logs)

    b = summary.estimates
    assert summary.log_likelihood == pytest.approx(-total(b), rel=1e-10)
    hessian = approx_hess_cs(b, total)
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    assert summary.standard_errors == pytest.approx(errors, rel=1e-8)


def test_a_penalty_has_no_summary():
    v = keras.Variable(np.float32(0.0))
    result = kormos.minimize(
        lambda x: {"fit": (v - x) ** 2, "penalty": 0.1 * v**2},
        [v],
        data=np.arange(5.0, dtype="float32"),
    )
    with pytest.raises(ValueError, match="'fit', 'penalty'"):
        result.summary()
