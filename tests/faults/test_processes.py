"""Simultaneous fits in threads and in other processes."""

import multiprocessing
import threading

import numpy as np
import pytest

from conftest import BACKEND
from faults import children
from faults.models import data
from faults.models import network

KIND = "threads and processes"

PAIRS = [("l-bfgs-b", "lbfgs"), ("lm", "lbfgs")]


@pytest.mark.parametrize("methods", PAIRS, ids=" and ".join)
def test_in_two_threads(methods, fault):
    """Both compile and fit at the same time, and end as each does alone."""
    x, y = data()
    # Seeds are global: the models are made one after the other.
    models = [network(m, seed=i) for i, m in enumerate(methods)]
    starts = [model.get_weights() for model in models]
    barrier, losses, errors = threading.Barrier(2), {}, []

    def fit(model):
        try:
            barrier.wait()
            history = model.fit(x, y, epochs=12, verbose=0)
            losses[model] = history.history["loss"]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fit, args=(m,)) for m in models]
    with fault.spares(models[0], x, y), fault.spares(models[1], x, y):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    for model, start in zip(models, starts, strict=True):
        together = model.get_weights()
        model.set_weights(start)
        model.optimizer.solver_state = None
        alone = model.fit(x, y, epochs=12, verbose=0)
        assert losses[model] == alone.history["loss"]
        for a, b in zip(together, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


# JAX and TensorFlow run threads, which a fork loses while their locks stay.
CONTEXTS = [
    pytest.param(
        "fork",
        marks=pytest.mark.skipif(
            BACKEND != "torch", reason=f"{BACKEND} hangs after a fork"
        ),
    ),
    "forkserver",
    "spawn",
]


@pytest.mark.parametrize("kind", CONTEXTS)
def test_in_another_process(kind, fault, tmp_path, monkeypatch):
    context = children.context(monkeypatch, tmp_path)
    if kind != "forkserver":
        context = multiprocessing.get_context(kind)
    method = "lm" if kind == "spawn" else "lbfgs"
    losses, weights = children.fit(None, method)
    process, connection = children.start(context, children.fit, method)
    try:
        assert connection.poll(60), "the child hangs"
        theirs = connection.recv()
        process.join(60)
    finally:
        process.kill()
    assert process.exitcode == 0
    np.testing.assert_array_equal(theirs[0], losses)
    np.testing.assert_array_equal(theirs[1], weights)
    # The parent process still works.
    model = children.network("l-bfgs-b")
    x, y = children.points()
    with fault.spares(model, x, y):
        result = model.fit(x, y, epochs=5, verbose=0).result
    assert result.loss < result.initial_loss
