"""The test functions of Moré, Garbow and Hillstrom, in `keras.ops`.

ACM TOMS 7(1), 1981. Each function returns the residuals, whose sum of squares
is the loss, of a float64 vector `x`; its second argument is the `Problem`, for
its number of residuals and its data. Gulf has the sign and the power of the
paper's later corrections.
"""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np
from keras import ops

_FILE = pathlib.Path(__file__).parent / "tables" / "mgh.json"

# Published minima have six digits.
_DIGITS = 1e-5

# Minima of zero are reached to this part of the loss, at a start above one.
_ZERO = 1e-11


class Problem(NamedTuple):
    """A function with its start and its published minima.

    Attributes:
        no: the number of the function in the paper.
        name: its name, and the number of variables where that varies.
        m: the number of residuals.
        x0: the standard start.
        minima: the published minima of the sum of squares, a limit at
            infinity among them in some.
        y, u: the data of the residuals, if any.
    """

    no: int
    name: str
    m: int
    x0: list
    minima: list
    y: list = ()
    u: list = ()

    def residuals(self, x):
        return _RESIDUALS[self.no](x, self)

    def loss(self, x):
        return ops.sum(self.residuals(x) ** 2)

    def excess(self, loss, first_loss):
        """How far a loss is from the nearest minimum, beyond tolerance."""
        margin = _ZERO * min(1.0, first_loss)
        return min(abs(loss - m) - _DIGITS * m - margin for m in self.minima)


def problems():
    given = json.loads(_FILE.read_text())["problems"]
    return [Problem(**fields) for fields in given]


def _constant(values):
    return ops.convert_to_tensor(np.asarray(values, dtype="float64"))


def _indices(count):
    """1, 2, ..., count."""
    return np.arange(1.0, count + 1)


def rosenbrock(x, problem):
    a, b = x[0::2], x[1::2]
    return ops.concatenate([10 * (b - a**2), 1 - a])


def freudenstein_roth(x, problem):
    a, b = x[0], x[1]
    first = -13 + a + ((5 - b) * b - 2) * b
    return ops.stack([first, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x, problem):
    a, b = x[0], x[1]
    return ops.stack([1e4 * a * b - 1, ops.exp(-a) + ops.exp(-b) - 1.0001])


def brown_badly_scaled(x, problem):
    a, b = x[0], x[1]
    return ops.stack([a - 1e6, b - 2e-6, a * b - 2])


def beale(x, problem):
    powers = x[1] ** _constant(_indices(3))
    return _constant(problem.y) - x[0] * (1 - powers)


def jennrich_sampson(x, problem):
    i = _constant(_indices(problem.m))
    return 2 + 2 * i - (ops.exp(i * x[0]) + ops.exp(i * x[1]))


def helical_valley(x, problem):
    a, b, c = x[0], x[1], x[2]
    theta = ops.arctan(b / a) / (2 * math.pi)
    theta = ops.where(a < 0, theta + 0.5, theta)
    return ops.stack(
        [10 * (c - 10 * theta), 10 * (ops.sqrt(a**2 + b**2) - 1), c]
    )


def bard(x, problem):
    u = _indices(problem.m)
    v = 16 - u
    w = _constant(np.minimum(u, v))
    u, v = _constant(u), _constant(v)
    return _constant(problem.y) - (x[0] + u / (v * x[1] + w * x[2]))


def gaussian(x, problem):
    t = _constant((8 - _indices(problem.m)) / 2)
    bell = x[0] * ops.exp(-x[1] * (t - x[2]) ** 2 / 2)
    return bell - _constant(problem.y)


def meyer(x, problem):
    t = _constant(45 + 5 * _indices(problem.m))
    return x[0] * ops.exp(x[1] / (t + x[2])) - _constant(problem.y)


def gulf(x, problem):
    t = _indices(problem.m) / 100
    y = _constant(25 + (-50 * np.log(t)) ** (2 / 3))
    return ops.exp(-(ops.abs(x[1] - y) ** x[2]) / x[0]) - _constant(t)


def box(x, problem):
    t = _indices(problem.m) / 10
    last = _constant(np.exp(-t) - np.exp(-10 * t))
    t = _constant(t)
    return ops.exp(-t * x[0]) - ops.exp(-t * x[1]) - x[2] * last


def powell_singular(x, problem):
    a, b, c, d = (x[i::4] for i in range(4))
    return ops.concatenate(
        [
            a + 10 * b,
            math.sqrt(5) * (c - d),
            (b - 2 * c) ** 2,
            math.sqrt(10) * (a - d) ** 2,
        ]
    )


def wood(x, problem):
    a, b, c, d = x[0], x[1], x[2], x[3]
    return ops.stack(
        [
            10 * (b - a**2),
            1 - a,
            math.sqrt(90) * (d - c**2),
            1 - c,
            math.sqrt(10) * (b + d - 2),
            (b - d) / math.sqrt(10),
        ]
    )


def kowalik_osborne(x, problem):
    u = _constant(problem.u)
    ratio = (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])
    return _constant(problem.y) - x[0] * ratio


def brown_dennis(x, problem):
    t = _indices(problem.m) / 5
    growth, sine, cosine = (_constant(f(t)) for f in (np.exp, np.sin, np.cos))
    first = x[0] + _constant(t) * x[1] - growth
    return first**2 + (x[2] + x[3] * sine - cosine) ** 2


def osborne_1(x, problem):
    t = _constant(10 * (_indices(problem.m) - 1))
    decays = x[1] * ops.exp(-t * x[3]) + x[2] * ops.exp(-t * x[4])
    return _constant(problem.y) - (x[0] + decays)


def biggs(x, problem):
    t = _indices(problem.m) / 10
    y = _constant(np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t))
    t = _constant(t)
    terms = x[2] * ops.exp(-t * x[0]) - x[3] * ops.exp(-t * x[1])
    return terms + x[5] * ops.exp(-t * x[4]) - y


def osborne_2(x, problem):
    t = _constant((_indices(problem.m) - 1) / 10)
    model = x[0] * ops.exp(-t * x[4])
    for i in (1, 2, 3):
        model = model + x[i] * ops.exp(-((t - x[7 + i]) ** 2) * x[4 + i])
    return _constant(problem.y) - model


def watson(x, problem):
    powers = np.arange(x.shape[0])
    t = _indices(29)[:, None] / 29
    slopes = powers * t ** np.maximum(powers - 1, 0)
    values = ops.matmul(_constant(t**powers), x)
    most = ops.matmul(_constant(slopes), x) - values**2 - 1
    last = ops.stack([x[0], x[1] - x[0] ** 2 - 1])
    return ops.concatenate([most, last])


def penalty_1(x, problem):
    last = ops.sum(x**2) - 0.25
    return ops.concatenate([math.sqrt(1e-5) * (x - 1), ops.stack([last])])


def penalty_2(x, problem):
    n, i = x.shape[0], _indices(x.shape[0])
    growth = np.exp(i / 10)
    y = _constant(growth[1:] + growth[:-1])
    exps = ops.exp(x / 10)
    sums = math.sqrt(1e-5) * (exps[1:] + exps[:-1] - y)
    single = math.sqrt(1e-5) * (exps[1:] - math.exp(-0.1))
    last = ops.sum(_constant(n - i + 1) * x**2) - 1
    ends = ops.stack([x[0] - 0.2, last])
    return ops.concatenate([sums, single, ends])


def variably_dimensioned(x, problem):
    last = ops.sum(_constant(_indices(x.shape[0])) * (x - 1))
    return ops.concatenate([x - 1, ops.stack([last, last**2])])


def trigonometric(x, problem):
    n, i = x.shape[0], _constant(_indices(x.shape[0]))
    cosine = ops.cos(x)
    return n - ops.sum(cosine) + i * (1 - cosine) - ops.sin(x)


def brown_almost_linear(x, problem):
    first = x + ops.sum(x) - (x.shape[0] + 1)
    return ops.concatenate([first[:-1], ops.stack([ops.prod(x) - 1])])


def _grid(count):
    return _indices(count) / (count + 1)


def discrete_boundary_value(x, problem):
    n = x.shape[0]
    ends = _constant([0.0])
    padded = ops.concatenate([ends, x, ends])
    cubes = (x + _constant(_grid(n)) + 1) ** 3 / (2 * (n + 1) ** 2)
    return 2 * x - padded[:-2] - padded[2:] + cubes


def discrete_integral_equation(x, problem):
    n = x.shape[0]
    t = _grid(n)
    # The Green's function of the boundary value problem.
    kernel = np.minimum.outer(t, t) * (1 - np.maximum.outer(t, t))
    cubes = (x + _constant(t) + 1) ** 3
    return x + ops.matmul(_constant(kernel), cubes) / (2 * (n + 1))


def broyden_tridiagonal(x, problem):
    ends = _constant([0.0])
    padded = ops.concatenate([ends, x, ends])
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


def broyden_banded(x, problem):
    i = np.arange(x.shape[0])
    offset = i - i[:, None]
    band = (offset >= -5) & (offset <= 1) & (offset != 0)
    return x * (2 + 5 * x**2) + 1 - ops.matmul(_constant(band), x * (1 + x))


def linear_full_rank(x, problem):
    n, m = x.shape[0], problem.m
    rest = -2 / m * ops.sum(x) - 1
    return ops.concatenate([x + rest, _constant(np.ones(m - n)) * rest])


def linear_rank_1(x, problem):
    total = ops.sum(_constant(_indices(x.shape[0])) * x)
    return _constant(_indices(problem.m)) * total - 1


def linear_rank_1_with_zeros(x, problem):
    j, i = _indices(x.shape[0]), _indices(problem.m) - 1
    j[[0, -1]] = i[-1] = 0
    return _constant(i) * ops.sum(_constant(j) * x) - 1


def chebyquad(x, problem):
    # The shifted polynomials, on [0, 1].
    z = 2 * x - 1
    before, present, means = ops.ones_like(z), z, []
    for _ in range(problem.m):
        means.append(ops.mean(present))
        before, present = present, 2 * z * present - before
    i = _indices(problem.m)
    integrals = np.where(i % 2 == 0, -1 / np.maximum(i**2 - 1, 1), 0)
    return ops.stack(means) - _constant(integrals)


_RESIDUALS = {
    1: rosenbrock,
    2: freudenstein_roth,
    3: powell_badly_scaled,
    4: brown_badly_scaled,
    5: beale,
    6: jennrich_sampson,
    7: helical_valley,
    8: bard,
    9: gaussian,
    10: meyer,
    11: gulf,
    12: box,
    13: powell_singular,
    14: wood,
    15: kowalik_osborne,
    16: brown_dennis,
    17: osborne_1,
    18: biggs,
    19: osborne_2,
    20: watson,
    21: rosenbrock,
    22: powell_singular,
    23: penalty_1,
    24: penalty_2,
    25: variably_dimensioned,
    26: trigonometric,
    27: brown_almost_linear,
    28: discrete_boundary_value,
    29: discrete_integral_equation,
    30: broyden_tridiagonal,
    31: broyden_banded,
    32: linear_full_rank,
    33: linear_rank_1,
    34: linear_rank_1_with_zeros,
    35: chebyquad,
}
