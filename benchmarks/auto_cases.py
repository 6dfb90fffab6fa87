"""Problems on which `auto.py` compares the choice of a method with all methods.

`minimize`: test functions of Moré, Garbow and Hillstrom (ACM TOMS 7(1), 1981).

`least_squares`: the same functions as residuals, and NIST's regressions from
both of their starts.

`fit`: the models of `problems.py`; sin(10 x) / (10 x), fitted by a network
1-20-1 on 2,000 rows; a likelihood of counts with 20 weights, on 5,000 rows; and
linear models of tables of scikit-learn, with a penalty of 1e-4 on the squared
weights, so that a minimum exists.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import problems

import kormos

sys.path.append(str(problems.ROOT / "tests" / "helpers"))
import mgh
import nist

OF_FUNCTIONS = "lbfgs", "ssbroyden", "dense-bfgs", "l-bfgs-b", "bfgs"
OF_RESIDUALS = "lm", "lbfgs", "ssbroyden", "l-bfgs-b"
OF_MODELS = "lm", "lbfgs", "ssbroyden", "newton", "newton-cg", "l-bfgs-b"


class Case(NamedTuple):
    """A problem, with a start, that methods solve.

    Attributes:
        group: the function of kormos that solves it.
        name: its name in the table.
        methods: the methods besides `"auto"`.
        size: the number of parameters.
        begin: sets the variables to the start.
        run: function `(method, target, most)` that solves it until a target
            loss or a number of evaluations is reached, and returns the
            `Result`.
        part: the part of the way that is left at the loss to reach.
        target: the loss to reach, if it is absolute.
        most: the evaluations after which a run ends.
    """

    group: str
    name: str
    methods: tuple[str, ...]
    size: int
    begin: Callable[[], object]
    run: Callable[[str, float | None, int], Any]
    part: float = 1e-8
    target: float | None = None
    most: int = 500


def of_variable(group, name, fn, start, methods, solve):
    """A case of a function of one variable."""
    start = np.array(start, dtype="float64")
    variable = keras.Variable(start, dtype="float64")

    def loss():
        return fn(variable)

    def run(method, target, most):
        return solve(
            loss,
            [variable],
            method,
            max_iterations=most,
            max_evals=most,
            target_loss=target,
        )

    return Case(
        group,
        name,
        methods,
        start.size,
        lambda: variable.assign(start),
        run,
    )


def of_functions():
    for p in mgh.problems():
        yield of_variable(
            "minimize", p.name, p.loss, p.x0, OF_FUNCTIONS, kormos.minimize
        )


def of_residuals():
    for p in mgh.problems():
        yield of_variable(
            "least_squares",
            p.name,
            p.residuals,
            p.x0,
            OF_RESIDUALS,
            kormos.least_squares,
        )
    for p in nist.problems():
        for number, start in enumerate(p.starts, 1):
            yield of_variable(
                "least_squares",
                f"{p.name}, start {number}",
                p.residuals,
                start,
                OF_RESIDUALS,
                kormos.least_squares,
            )


def of_model(name, model, x, y, start, **fields):
    """A case of a compiled model."""

    def run(method, target, most):
        return kormos.fit(
            model,
            x,
            y,
            batch_size=len(y),
            optimizer=method,
            epochs=most,
            max_evals=most,
            target_loss=target,
            verbose=0,
        ).result

    weights = model.get_weights() if start is None else start
    return Case(
        "fit",
        name,
        OF_MODELS,
        model.count_params(),
        lambda: model.set_weights(weights),
        run,
        **fields,
    )


def of_problem(problem):
    """A case of `problems.py`."""
    theta = problem.start(0)

    def run(method, target, most):
        target = -math.inf if target is None else target
        # Users get this batch size by default. In other benchmarks, all rows
        # are taken at once, as peers do.
        return problem.ours(method, most, target, batch_size=None)

    least = min(problem.targets)
    return Case(
        "fit",
        problem.name,
        OF_MODELS,
        problem.objective.size,
        lambda: problem.objective.assign(theta),
        run,
        part=least,
        target=None if problem.is_relative else least,
        most=problem.most,
    )


def sinc():
    x = np.linspace(-1, 1, 2_000)[:, None]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(20, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    y = np.sinc(10 * x / np.pi)
    return of_model("sinc, float64", model, x, y, None, part=1e-5)


def counts():
    rng = np.random.RandomState(0)
    x = rng.normal(size=(5_000, 20))
    y = rng.poisson(np.exp(x @ rng.normal(size=(20, 1)) / 5))
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(1, activation="exponential")]
    )
    model.compile(loss="poisson")
    start = [np.zeros((20, 1)), np.zeros(1)]
    return of_model("counts, float64", model, x, y * 1.0, start, part=1e-5)


# Tables of scikit-learn, with the loss and the number of outputs.
_TABLES = {
    "diabetes": ("load_diabetes", "mse", 1),
    "cancer": ("load_breast_cancer", "binary", 1),
    "wine": ("load_wine", "categories", 3),
}
_LOSSES = {
    "mse": "mse",
    "binary": keras.losses.BinaryCrossentropy(from_logits=True),
    "categories": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
}


def of_table(name):
    """A linear model of a table, whose columns and real targets are scaled."""
    from sklearn import datasets

    load, loss, outputs = _TABLES[name]
    x, y = getattr(datasets, load)(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    if loss == "mse":
        y = (y - y.mean()) / y.std()
    keras.utils.set_random_seed(0)
    penalty = keras.regularizers.L2(1e-4)
    layer = keras.layers.Dense(outputs, kernel_regularizer=penalty)
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    model.compile(loss=_LOSSES[loss])
    y = y.reshape(len(y), -1)
    return of_model(f"{name}, float64", model, x, y, None, part=1e-5)


def of_models():
    """Yields pairs of a dtype and a function that makes a case in it."""
    for make, dtypes in problems.PROBLEMS.values():
        for dtype in dtypes:
            yield dtype, lambda m=make, d=dtype: of_problem(m(d))
    yield "float64", sinc
    yield "float64", counts
    for name in _TABLES:
        yield "float64", functools.partial(of_table, name)
