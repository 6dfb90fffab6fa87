"""Operations: with Python numbers in them, then functions."""

import numpy as np
from keras import ops
from scipy import special

from audit.formulas import attend
from audit.formulas import moments
from audit.inputs import IMAGE
from audit.inputs import POSITIVE
from audit.inputs import SEQUENCE
from audit.inputs import UNIT
from audit.making import layer
from audit.making import of_x


def logsumexp(x):
    return np.log(np.sum(np.exp(x), -1))


def quadratic(x):
    return x.T @ x + np.eye(6)


def erfinv(x):
    # Newton's last step, which carries the complex part.
    y = special.erfinv(x.real)
    return y + (x - special.erf(y)) * np.sqrt(np.pi) / 2 * np.exp(y**2)


def _cholesky(a):
    """NumPy's would conjugate."""
    factor = np.zeros_like(a)
    for i in range(len(a)):
        for j in range(i + 1):
            rest = a[i, j] - factor[i, :j] @ factor[j, :j]
            factor[i, j] = np.sqrt(rest) if i == j else rest / factor[j, j]
    return factor


# Python numbers within operations, then functions.
OPERATIONS = {
    "0.3 * x": of_x(lambda x: 0.3 * x, lambda x: 0.3 * x),
    "x ** 1.3": of_x(lambda x: x**1.3, lambda x: x**1.3, POSITIVE),
    "ops.add(x, 0.3)": of_x(lambda x: ops.add(x, 0.3), lambda x: x + 0.3),
    "ops.multiply(x, 0.3)": of_x(
        lambda x: ops.multiply(x, 0.3), lambda x: 0.3 * x
    ),
    "ops.divide(x, 0.3)": of_x(lambda x: ops.divide(x, 0.3), lambda x: x / 0.3),
    "ops.power(x, 1.3)": of_x(
        lambda x: ops.power(x, 1.3), lambda x: x**1.3, POSITIVE
    ),
    "ops.maximum(x, 0.3)": of_x(
        lambda x: ops.maximum(x, 0.3), lambda x: np.maximum(x, 0.3)
    ),
    "ops.clip(x, 0.3, 0.7)": of_x(
        lambda x: ops.clip(x, 0.3, 0.7), lambda x: np.clip(x, 0.3, 0.7)
    ),
    "ops.where(x > 0, x, 0.3)": of_x(
        lambda x: ops.where(x > 0, x, 0.3), lambda x: np.where(x > 0, x, 0.3)
    ),
    "ops.linspace(0.1, 0.7, 6)": of_x(
        lambda x: x * ops.linspace(0.1, 0.7, 6),
        lambda x: x * np.linspace(0.1, 0.7, 6),
    ),
    "ops.arange(6) / 7": of_x(
        lambda x: x * (ops.arange(6, dtype="float64") / 7),
        lambda x: x * (np.arange(6) / 7),
    ),
    "ops.erf": of_x(ops.erf, special.erf),
    "ops.erfinv": of_x(ops.erfinv, erfinv, UNIT),
    "ops.logsumexp": of_x(lambda x: ops.logsumexp(x, -1), logsumexp),
    "ops.rsqrt": of_x(ops.rsqrt, lambda x: 1 / np.sqrt(x), POSITIVE),
    "ops.norm": of_x(
        lambda x: ops.norm(x, axis=-1), lambda x: np.sqrt(np.sum(x**2, -1))
    ),
    "ops.std": of_x(
        lambda x: ops.std(x, -1),
        lambda x: np.sqrt(np.squeeze(moments(x, -1)[1], -1)),
    ),
    "ops.segment_sum": of_x(
        lambda x: ops.segment_sum(x, np.array([0, 1, 1, 0]), 2),
        lambda x: np.stack([x[0] + x[3], x[1] + x[2]]),
    ),
    "ops.linalg.solve": of_x(
        lambda x: ops.solve(
            ops.matmul(ops.transpose(x), x) + ops.eye(6), ops.transpose(x)
        ),
        lambda x: np.linalg.solve(quadratic(x), x.T),
    ),
    "ops.cholesky": of_x(
        lambda x: ops.cholesky(ops.matmul(x, ops.transpose(x))),
        lambda x: _cholesky(x @ x.T),
    ),
    "ops.dot_product_attention": layer(
        lambda: ops.dot_product_attention,
        lambda q, k: np.swapaxes(
            attend(*(np.swapaxes(a, 1, 2) for a in (q, k, k)))[0], 1, 2
        ),
        SEQUENCE.reshape(1, 5, 3, 2),
        IMAGE[:1, 0, :6].reshape(1, 2, 3, 2),
        call=lambda made, q, k: made(q, k, k),
    ),
}
