"""Problems that `quasi_newton.py` minimizes.

`grid` and `random`: a network 2-64-64-1, tanh, mean squared error of x1^2 +
x2^2 on 11 x 11 points of [-1, 1]^2, or on 10,000 random points.
`digits`: multinomial logistic regression on scikit-learn's digits, from zero.
An L2 penalty of 1e-4 makes sure that there is a minimum.
`convnet`: two convolutional layers and one of ten outputs, with the same
penalty, on 600 of these digits, enlarged to 28 x 28.
`ratings`: matrix factorization of rank 5 of 100,836 ratings by 610 users of
9,724 items, the shape of MovieLens. The ratings are generated: products of
random factors, with noise, rounded to half stars. A few users and items have
many ratings, and most have few.
`mgh`: the test functions of Moré, Garbow and Hillstrom, ACM TOMS 7(1), 1981,
from their standard starts: sums of squares of 2 to 40 parameters.
"""

import pathlib
import sys
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import scipy.ndimage

import kormos
from kormos.objective.functions.scalar import FunctionObjective

ROOT = pathlib.Path(__file__).parent.parent
sys.path += [str(ROOT / "tests" / "helpers"), str(ROOT / "examples")]
import collaborative_filtering as example

import mgh


class Problem(NamedTuple):
    """A loss, where to start and what to reach.

    Attributes:
        name: the title of the table.
        objective: the loss as a function of a flat vector.
        variables: the variables that are optimized.
        loss: the loss as a function without arguments, by the backend's own
            functions.
        start: function of a seed that returns that vector.
        ours: function `(optimizer, evaluations, target)` that runs kormos from
            the variables' present values and returns its `Result`.
        targets: the losses to reach.
        is_relative: whether these are parts of the distance from the loss at
            the start to the lowest loss that any method found from there.
        most: the evaluations after which a run ends.
        seeds: the number of different seeds.
        is_fast_in_xla: whether TensorFlow's XLA makes it fast on a CPU.
        lowest: the lowest known minimum: runs may end next to it.
    """

    name: str
    objective: Any
    variables: list
    loss: Any
    start: Any
    ours: Any
    targets: tuple
    is_relative: bool
    most: int
    seeds: int = 1_000
    is_fast_in_xla: bool = True
    lowest: float = float("-inf")


def of_model(name, model, x, y, loss, start, **fields):
    model.compile(loss=loss)
    rows = len(y)
    objective = kormos.Objective(model, x, y, batch_size=rows)
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, (x, y))

    def ours(optimizer, evaluations, target, batch_size=rows):
        history = kormos.fit(
            model,
            x,
            y,
            batch_size=batch_size,
            optimizer=optimizer,
            epochs=evaluations,
            steps_per_epoch=100,
            max_evals=evaluations,
            target_loss=target,
            verbose=0,
        )
        return history.result

    def eager():
        return model.compute_loss(*tensors, model(tensors[0]))

    return Problem(
        name,
        objective,
        model.trainable_variables,
        eager,
        start,
        ours,
        **fields,
    )


def fresh(build):
    """A start function: the weights of a model that is built with a seed."""

    def start(seed):
        keras.utils.set_random_seed(seed)
        weights = [v.numpy() for v in build().trainable_variables]
        return np.concatenate([w.reshape(-1) for w in weights]).astype(
            "float64"
        )

    return start


def network(name, x, dtype, most):
    def build():
        return keras.Sequential(
            [
                keras.Input((2,)),
                keras.layers.Dense(64, activation="tanh"),
                keras.layers.Dense(64, activation="tanh"),
                keras.layers.Dense(1),
            ]
        )

    x = x.astype(dtype)
    return of_model(
        f"{name}, {dtype}",
        build(),
        x,
        (x**2).sum(axis=1, keepdims=True),
        "mse",
        fresh(build),
        targets=(1e-3, 1e-4, 1e-5, 1e-6),
        is_relative=False,
        most=most,
    )


def grid(dtype):
    side = np.linspace(-1, 1, 11)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return network("grid", x, dtype, 1_000)


def random(dtype):
    x = np.random.default_rng(0).uniform(-1, 1, (10_000, 2))
    return network("random", x, dtype, 300)


def digits(dtype):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)

    def build():
        layer = keras.layers.Dense(
            10,
            kernel_initializer="zeros",
            kernel_regularizer=keras.regularizers.L2(1e-4),
        )
        return keras.Sequential([keras.Input((64,)), layer])

    return of_model(
        f"digits, {dtype}",
        build(),
        (x / 16).astype(dtype),
        y,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        fresh(build),
        targets=(1e-2, 1e-5),
        is_relative=True,
        most=1_000,
        seeds=1,
    )


def convnet(dtype):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x[:600].reshape(-1, 8, 8, 1) / 16
    x = scipy.ndimage.zoom(x, (1, 3.5, 3.5, 1), order=1)

    def build():
        penalty = keras.regularizers.L2(1e-4)
        layers = [
            keras.layers.Conv2D(
                filters,
                3,
                strides=2,
                activation="silu",
                kernel_regularizer=penalty,
            )
            for filters in (8, 16)
        ]
        last = keras.layers.Dense(10, kernel_regularizer=penalty)
        return keras.Sequential(
            [keras.Input((28, 28, 1)), *layers, keras.layers.Flatten(), last]
        )

    return of_model(
        f"convnet, {dtype}",
        build(),
        x.astype(dtype),
        y[:600],
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        fresh(build),
        targets=(1e-1, 3e-2),
        is_relative=True,
        most=60,
        is_fast_in_xla=False,
    )


def ratings(dtype):
    users, items, stars = example.generate()

    def build():
        inputs, factors = [], []
        for count in (example.USERS, example.ITEMS):
            inputs.append(keras.Input((), dtype="int32"))
            embedding = keras.layers.Embedding(
                count,
                example.RANK,
                embeddings_initializer=keras.initializers.RandomNormal(
                    stddev=0.1
                ),
                embeddings_regularizer=keras.regularizers.L2(1e-5),
            )
            factors.append(embedding(inputs[-1]))
        outputs = keras.layers.Dot(axes=1)(factors)
        return keras.Model(inputs, outputs)

    return of_model(
        f"ratings, {dtype}",
        build(),
        [users.astype("int32"), items.astype("int32")],
        stars.astype(dtype)[:, None],
        "mse",
        fresh(build),
        targets=(1e-2, 1e-3),
        is_relative=True,
        most=200,
    )


def of_function(function):
    """A problem of the test set, in float64."""
    variable = keras.Variable(np.array(function.x0), dtype="float64")

    def loss():
        return function.loss(variable)

    def ours(optimizer, evaluations, target):
        return kormos.minimize(
            loss,
            [variable],
            optimizer,
            max_iterations=evaluations,
            max_evals=evaluations,
            target_loss=target,
        )

    return Problem(
        function.name,
        FunctionObjective(loss, [variable]),
        [variable],
        loss,
        lambda seed: np.array(function.x0, dtype="float64"),
        ours,
        targets=(1e-2, 1e-5, 1e-8),
        is_relative=True,
        most=400,
        seeds=1,
        lowest=min(function.minima),
    )


PROBLEMS = {
    "grid": (grid, ("float64", "float32")),
    "random": (random, ("float32",)),
    "digits": (digits, ("float64",)),
    "convnet": (convnet, ("float32",)),
    "ratings": (ratings, ("float64",)),
}


def functions():
    """The problems of the test set, of which the benchmark takes some."""
    return [of_function(function) for function in mgh.problems()]
