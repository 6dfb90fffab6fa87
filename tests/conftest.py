"""Fixtures of all tests. `KERAS_BACKEND` names the backend under test."""

import contextlib
import importlib.util
import os
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

try:
    # torch must come first: after TensorFlow, it crashes the process.
    import torch as torch
except ImportError:
    # Its CPU build does not exist for every Python: `make test-newest`.
    collect_ignore = [
        "data/test_data_sources.py",
        "data/test_data_errors.py",
        "data/test_endless_data.py",
        "data/test_streaming.py",
        "session/test_validation.py",
    ]

import keras
import numpy as np
import pytest

import kormos
from kormos.session import interrupts

pytest_plugins = ["dealing", "faults.table"]

BACKEND = keras.backend.backend()

# The other installed backends, and the first lines of a process on one.
OTHERS = [
    name
    for name in ("torch", "jax", "tensorflow")
    if name != BACKEND and importlib.util.find_spec(name)
]
TORCH_FIRST = "import torch\n" if "torch" in (BACKEND, *OTHERS) else ""

# TensorFlow rounds Python floats (a regularizer's factor, say) to float32.
TIGHT = 1e-7 if BACKEND == "tensorflow" else 1e-12


@pytest.fixture
def float64():
    """Runs a test in true float64."""
    with kormos.precision("float64"):
        yield


@contextlib.contextmanager
def undoing(dtype):
    """True arithmetic of a dtype; undoes `enable_float64` within it."""
    try:
        with kormos.precision(dtype):
            yield
    finally:
        if BACKEND == "jax":
            import jax

            jax.config.update("jax_enable_x64", False)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Tests interrupt one fit after another, faster than people do."""
    monkeypatch.setattr(interrupts, "SECONDS", 0.0)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)
    yield
    # Collecting garbage after each test would take longer than most tests.
    keras.backend.clear_session(free_memory=False)


# In these modules, TensorFlow rewrites graphs, and XLA compiles the solvers'
# loops, as for users: the tests are about that, or compare with another
# process. In the other modules, graphs run as they are written, because
# compiling and rewriting them takes longer than most of the fits.
_AS_FOR_USERS = {
    "test_convolutions",
    "test_equalities",
    "test_faults",
    "test_flat_state",
    "test_gauss_newton",
    "test_kept_programs",
    "test_kills",
    "test_l1",
    "test_levenberg_marquardt",
    "test_newton",
    "test_processes",
    "test_quasi_newton",
    "test_random_numbers",
    "test_resume",
    "test_scans",
    "test_traces",
}


@pytest.fixture(autouse=True)
def graphs(request, monkeypatch):
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    as_written = request.module.__name__.split(".")[-1] not in _AS_FOR_USERS
    options = {"disable_meta_optimizer": as_written}
    tf.config.optimizer.set_experimental_options(options)
    if as_written:
        compile = kormos.backend.compile
        monkeypatch.setattr(kormos.backend, "compile_loop", compile)


@pytest.fixture
def unconverged():
    """For fits that are meant to end at their iteration limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kormos.ConvergenceWarning)
        yield


def lindata(rows, noise, rank=5, seed=1):
    """A linear regression: `x` of shape (rows, rank), `y` (rows, 1)."""
    random = np.random.RandomState(seed)
    w = random.normal(size=rank)
    x = random.normal(size=(rows, rank))
    return x, (x @ w)[:, None] + noise * random.normal(size=(rows, 1))


def readme50():
    """The predecessor's regression: `(x, y), (x_val, y_val)`."""
    random = np.random.RandomState(1)
    w = random.normal(size=50)
    x = random.normal(size=(1000, 50))
    x_val = random.normal(size=(1000, 50))
    return (x, x.dot(w)[:, None]), (x_val, x_val.dot(w)[:, None])


def linear(inputs=5, l2=None, **kwargs):
    """A linear model that starts at ones."""
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            keras.layers.Dense(
                1,
                use_bias=False,
                kernel_initializer="ones",
                kernel_regularizer=l2 and keras.regularizers.L2(l2),
                **kwargs,
            ),
        ]
    )
