"""Warnings point at the user's line, and kormos' own calls cause none."""

import contextlib
import traceback
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from kormos.arithmetic.vectors import to_array

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


def fit(optimizer, **kwargs):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, "tanh")])
    model.add(keras.layers.Dense(1))
    model.compile(optimizer, "mse", metrics=["mae"])
    model.fit(X, X**2, epochs=3, verbose=0, **kwargs)
    return model


def resume_a_stream():
    """A kept state has arrays in place of a run's tensors."""
    how = {"stream": True, "batch_size": 4}
    model = fit("lbfgs", **how)
    model.fit(X, X**2, initial_epoch=3, epochs=6, verbose=0, resume=True, **how)


def minimize(method):
    v = keras.Variable([1.0, 2.0])
    kormos.minimize(lambda: ops.sum((v - 1 / 3) ** 2 + v**4), [v], method)


def least_squares():
    v = keras.Variable([1.0, 2.0])
    kormos.least_squares(lambda: (v - 1 / 3) * ops.exp(v), [v])


DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
SOURCE = str(Path(kormos.__file__).parent)


@contextlib.contextmanager
def deprecations():
    """Yields a list of the deprecation warnings in calls of kormos."""
    found = []

    def show(message, category, filename, lineno, file=None, line=None):
        names = [frame.filename for frame in traceback.extract_stack()]
        ours = [i for i, name in enumerate(names) if name.startswith(SOURCE)]
        inner = names[ours[-1] + 1 :] if ours else []
        # Warnings while a library is imported are not kormos', and neither are
        # those of Keras in `Model.evaluate`.
        theirs = any("importlib" in n or "trainers" in n for n in inner)
        if issubclass(category, DEPRECATIONS) and ours and not theirs:
            found.append(f"{names[ours[-1]]}: {message}")

    with warnings.catch_warnings():
        for category in DEPRECATIONS:
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield found


@pytest.mark.usefixtures("unconverged")
@pytest.mark.parametrize(
    "act",
    [
        lambda: fit("l-bfgs-b", precision="auto"),
        lambda: fit("lbfgs", precision="auto"),
        lambda: fit("lm", precision="auto"),
        lambda: fit("lbfgs", precision="float64", validation_data=(X, X)),
        resume_a_stream,
        lambda: minimize("l-bfgs-b"),
        lambda: minimize("lbfgs"),
        least_squares,
    ],
    ids=[
        "l-bfgs-b",
        "lbfgs",
        "lm",
        "float64",
        "stream",
        "minimize-l-bfgs-b",
        "minimize-lbfgs",
        "least_squares",
    ],
)
def test_no_deprecation_comes_out_of_our_own_calls(act):
    with deprecations() as found:
        act()
    assert not found


class Old:
    def __array__(self, dtype=None, copy=None):
        warnings.warn("old", DeprecationWarning, stacklevel=2)
        return np.zeros(2)


def test_a_deprecation_in_our_own_calls_is_found():
    with deprecations() as found:
        np.array(Old())
        assert not found
        to_array(Old())
    assert len(found) == 1 and found[0].endswith("old")
