"""Warnings point at the line of the user's that led to them."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos

X = np.linspace(-1, 1, 8, dtype="float32")[:, None]


class Stepping(keras.Model):
    def __init__(self):
        super().__init__()
        self.last = keras.layers.Dense(1)

    def call(self, x):
        return self.last(x)

    def train_step(self, *args):
        raise NotImplementedError


def fit_with_steps_of_its_own():
    model = Stepping()
    model.compile("lbfgs", "mse")
    model.fit(X, X, verbose=0)


def resume_without_state():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("cg", "mse")
    model.fit(X, X, verbose=0, resume=True)


def minimize_without_a_variable():
    v, other = keras.Variable([1.0, 2.0]), keras.Variable(1.0)
    kormos.minimize(lambda: ops.sum(v**2), [v, other])


def save_a_lambda():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    optimizer = kormos.optimizers.ScipyBatchOptimizer(pretrain_fn=lambda m: 0)
    model.compile(optimizer, "mse")
    keras.models.clone_model(model)
    optimizer.get_config()


@pytest.mark.parametrize(
    "act, words",
    [
        (fit_with_steps_of_its_own, "train_step"),
        (resume_without_state, "keeps no curvature"),
        (minimize_without_a_variable, "does not depend"),
        (save_a_lambda, "lambda"),
    ],
)
def test_the_users_line_is_named(act, words):
    with pytest.warns(UserWarning, match=words) as record:
        act()
    warning = next(w for w in record if words in str(w.message))
    assert warning.filename == __file__
    code = act.__code__
    last = max(line for *_, line in code.co_lines() if line)
    assert code.co_firstlineno < warning.lineno <= last
