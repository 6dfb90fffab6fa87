"""Fits in float32: converged ones are successes, and stopped ones are not.

Thirty well-posed fits by each of kormos' own methods: linear and logistic
regressions, and small networks with a penalty. At the end of each, NumPy
evaluates the loss in float64, and SciPy minimizes it from there in float64. The
fit is right if its loss exceeds that minimum by no more than 1e-6 of it, or by
no more than the float32 rounding of the loss there. Ten other fits are stopped
after two iterations.
"""

import numpy as np
import scipy.optimize
from perceptrons import Perceptron

import trials

METHODS = ("lbfgs", "ssbroyden", "dense-bfgs", "ssbfgs", "lm")
MOST = 2_000
FEW = 2


def linear(seed):
    random = np.random.default_rng(seed)
    rows, columns = [(60, 2), (200, 5), (1_000, 10), (2_000, 20)][seed % 4]
    x = random.normal(size=(rows, columns))
    noise = 10.0 ** -(seed % 3)
    y = x @ random.normal(size=(columns, 1)) + 3 + noise * _normal(random, rows)
    return Perceptron(f"linear {seed}", x, y, 0, "float32")


def logistic(seed):
    random = np.random.default_rng(100 + seed)
    rows, columns = [(200, 2), (500, 5), (2_000, 10)][seed % 3]
    x = random.normal(size=(rows, columns))
    logits = x @ random.normal(size=(columns, 1)) + 0.5
    y = (random.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))) * 1.0
    name = f"logistic {seed}"
    return Perceptron(name, x, y, 0, "float32", is_logistic=True)


def network(seed):
    random = np.random.default_rng(200 + seed)
    inputs, hidden = [(1, 3), (2, 4), (3, 6)][seed % 3]
    x = random.uniform(-1, 1, (300, inputs))
    y = np.sin(3 * x.sum(axis=1, keepdims=True)) + 0.1 * _normal(random, 300)
    return Perceptron(f"network {seed}", x, y, hidden, "float32", penalty=1e-3)


def _normal(random, rows):
    return random.normal(size=(rows, 1))


def minimum(case, theta):
    """The minimum of the float64 loss that SciPy reaches from a point."""
    found = scipy.optimize.minimize(
        case.evaluate, theta, jac=True, method="BFGS", options={"gtol": 1e-11}
    )
    return min(float(found.fun), case.value(theta))


def excess(case, theta):
    """How far a loss is above its minimum, and the limit for that."""
    least = minimum(case, theta)
    allowed = max(trials.GAIN * abs(least), case.rounding(theta))
    return case.value(theta) - least, allowed


def study(record, methods, quick):
    """Runs all fits by all methods, and tabulates."""
    seeds = range(1 if quick else 10)
    cases = [make(s) for make in (linear, logistic, network) for s in seeds]
    short = [make(50 + s) for make in (logistic, network) for s in seeds[:5]]
    rows, runs = [], []
    for method in methods:
        done = [_fit(case, method, MOST) for case in cases]
        cut = [_fit(case, method, FEW) for case in short]
        runs += [[method, *run] for run in done + cut]
        right = [run for run in done if run[1] <= run[2]]
        rows.append(
            [
                method,
                len(done),
                sum(run[4] for run in done),
                len(right),
                sum(run[4] for run in right),
                len(cut),
                sum(run[4] for run in cut),
            ]
        )
    runs = [[m, c, e, a, s, str(ok), n] for m, c, e, a, s, ok, n in runs]
    columns = ["method", "fit", "excess", "allowed", "status", "success"]
    record.table("float32: fits", [*columns, "evaluations"], runs)
    columns = ["method", "fits", "successes", "right", "successes of these"]
    columns += ["stopped early", "successes of these"]
    record.table("float32: methods", columns, rows)


def _fit(case, method, most):
    result, end = case.fit(method, case.start, max_iterations=most)
    above, allowed = excess(case, end)
    ending = result.status, result.success, result.evaluations
    return case.name, above, allowed, *ending
