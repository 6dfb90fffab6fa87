"""Problems that `evaluations.py` minimizes.

`grid` and `random`: a network 2-64-64-1, tanh, mean squared error of
x1^2 + x2^2 on 11 x 11 points of [-1, 1]^2, or on 10,000 random ones.

`digits`: multinomial logistic regression on scikit-learn's digits, with an L2
penalty of 1e-4, so that there is a minimum, from zero.

`ratings`: matrix factorization of rank 5 of 100,836 ratings by 610 users of
9,724 items, which is MovieLens' shape. The ratings are generated: products of
random factors, with noise, rounded to half stars; some users and items have
many ratings and most have few.

`burgers`: Burgers' equation, viscosity 0.01 / pi, by a network of three layers
of 20 in (t, cos pi x, sin pi x), u = -sin pi x + t N: the mean squared
residual on 5,000 points, from where 2,500 steps of Adam lead.
"""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from scipy.stats import qmc

import kormos
from kormos.objective.function import FunctionObjective


class Problem(NamedTuple):
    """A loss, where to start and what to reach.

    Attributes:
        name: what the table is called.
        objective: the loss as a function of a flat vector.
        start: function of a seed that returns that vector.
        ours: function `(optimizer, evaluations, target)` that returns the
            history of kormos' run from the variables' present values.
        targets: losses to reach.
        is_relative: whether these are parts above the lowest loss that any
            method found from the same start.
        marks: counts of evaluations at which the loss is reported; the last
            is where a run ends.
        seeds: the most seeds that differ.
    """

    name: str
    objective: Any
    start: Any
    ours: Any
    targets: tuple
    is_relative: bool
    marks: tuple
    seeds: int = 1_000


def of_model(name, model, x, y, loss, start, **fields):
    model.compile(loss=loss)
    objective = kormos.Objective(model, x, y, batch_size=len(y))

    def ours(optimizer, evaluations, target):
        history = kormos.fit(
            model,
            x,
            y,
            batch_size=len(y),
            optimizer=optimizer,
            epochs=evaluations,
            steps_per_epoch=50,
            max_evals=evaluations,
            target_loss=target,
            verbose=0,
        )
        return history.iterations

    return Problem(name, objective, start, ours, **fields)


def fresh(build):
    """A start function: the weights of a model built after a seed."""

    def start(seed):
        keras.utils.set_random_seed(seed)
        weights = [v.numpy() for v in build().trainable_variables]
        return np.concatenate([w.reshape(-1) for w in weights]).astype(
            "float64"
        )

    return start


def network(name, x, dtype, marks):
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
        marks=marks,
    )


def grid(dtype):
    side = np.linspace(-1, 1, 11)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return network("grid", x, dtype, (300, 1_000))


def random(dtype):
    x = np.random.default_rng(0).uniform(-1, 1, (10_000, 2))
    return network("random", x, dtype, (300,))


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
        targets=(1e-3, 1e-6),
        is_relative=True,
        marks=(100, 1_000),
        seeds=1,
    )


USERS, ITEMS, RATINGS, RANK = 610, 9_724, 100_836, 5


def generated_ratings():
    rng = np.random.default_rng(0)

    def drawn(count):
        # Every user and item at least once; the rest by a power law.
        weights = 1 / np.arange(1, count + 1) ** 0.8
        rest = rng.choice(count, RATINGS - count, p=weights / weights.sum())
        return rng.permutation(np.concatenate([np.arange(count), rest]))

    users, items = drawn(USERS), drawn(ITEMS)
    of_users = rng.normal(0, 0.6, (USERS, RANK))
    of_items = rng.normal(0, 0.6, (ITEMS, RANK))
    stars = 3.5 + rng.normal(0, 0.4, USERS)[users]
    stars += rng.normal(0, 0.4, ITEMS)[items]
    stars += (of_users[users] * of_items[items]).sum(axis=1)
    stars += rng.normal(0, 0.6, RATINGS)
    return users, items, np.clip(np.round(2 * stars) / 2, 0.5, 5)


def ratings(dtype):
    users, items, stars = generated_ratings()

    def build():
        inputs, factors = [], []
        for count in (USERS, ITEMS):
            inputs.append(keras.Input((), dtype="int32"))
            embedding = keras.layers.Embedding(
                count,
                RANK,
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
        marks=(100, 300),
    )


POINTS, VISCOSITY = 5_000, 0.01 / np.pi


def burgers(dtype):
    sample = qmc.LatinHypercube(2, rng=np.random.default_rng(0)).random(POINTS)
    t = ops.convert_to_tensor(sample[:, :1])
    x = ops.convert_to_tensor(2 * sample[:, 1:] - 1)
    ones, zeros = ops.ones_like(t), ops.zeros_like(t)

    def build():
        layers = [
            keras.layers.Dense(
                20,
                activation="tanh",
                kernel_initializer="glorot_normal",
            )
            for _ in range(3)
        ]
        last = keras.layers.Dense(1, kernel_initializer="glorot_normal")
        return keras.Sequential([keras.Input((3,)), *layers, last])

    net = build()

    def u(t, x):
        angle = np.pi * x
        features = (t, ops.cos(angle), ops.sin(angle))
        return t * net(ops.concatenate(features, axis=1)) - ops.sin(angle)

    def slope(t, x):
        return ops.jvp(u, (t, x), (zeros, ones))

    def loss():
        (value, u_x), (_, u_xx) = ops.jvp(slope, (t, x), (zeros, ones))
        _, u_t = ops.jvp(u, (t, x), (ones, zeros))
        return ops.mean((u_t + value * u_x - VISCOSITY * u_xx) ** 2)

    objective = FunctionObjective(loss, net.trainable_variables)
    initial = fresh(build)

    def ours(optimizer, evaluations, target):
        result = kormos.minimize(
            loss,
            net.trainable_variables,
            optimizer,
            max_iterations=evaluations,
            max_evals=evaluations,
            target_loss=target,
        )
        return result.history

    return Problem(
        f"burgers, {dtype}",
        objective,
        lambda seed: adam(objective.value_and_grad, initial(seed)),
        ours,
        targets=(1e-4, 1e-6),
        is_relative=False,
        marks=(1_000, 3_000),
    )


def adam(value_and_grad, theta, steps=2_500):
    """Adam's point after so many steps, its rate times 0.9 every 1,000."""
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    for i in range(steps):
        _, grad = value_and_grad(theta)
        mean = 0.9 * mean + 0.1 * grad
        square = 0.999 * square + 0.001 * grad**2
        rate = 5e-3 * 0.9 ** (i / 1_000)
        rate *= np.sqrt(1 - 0.999 ** (i + 1)) / (1 - 0.9 ** (i + 1))
        theta = theta - rate * mean / (np.sqrt(square) + 1e-8)
    return theta


PROBLEMS = {
    "grid": (grid, ("float64", "float32")),
    "random": (random, ("float64", "float32")),
    "digits": (digits, ("float64",)),
    "ratings": (ratings, ("float64",)),
    "burgers": (burgers, ("float64",)),
}
