"""Fixtures of all tests. `KERAS_BACKEND` names the backend under test."""

import contextlib
import importlib.util
import os
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

try:
    # Imported after TensorFlow, torch crashes the process.
    import torch as torch
except ImportError:
    # Its CPU build is not to be had for every Python: `make test-newest`.
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

pytest_plugins = ["faults.table"]

BACKEND = keras.backend.backend()

# The other backends at hand, and how a process of one begins.
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


# Modules of what does not depend on how TensorFlow compiles a solver's loop:
# with XLA, as users have it, that takes twice as long.
_WITHOUT_XLA = {
    "test_activity_regularizers",
    "test_against_curve_fit",
    "test_against_statsmodels",
    "test_assigned_values",
    "test_budget",
    "test_callbacks",
    "test_certified_deviations",
    "test_check",
    "test_checkpoints",
    "test_claims",
    "test_custom_gradients",
    "test_data_sources",
    "test_displays",
    "test_endless_data",
    "test_every_layer",
    "test_every_loss",
    "test_exceptions",
    "test_external_solvers",
    "test_fit",
    "test_float64_tail",
    "test_float64_trial",
    "test_identification",
    "test_interrupts",
    "test_keras_callbacks",
    "test_layers_in_float64",
    "test_least_squares_convergence",
    "test_logit_convergence",
    "test_losses_of_variables",
    "test_messages",
    "test_models",
    "test_non_finite",
    "test_objective_effects",
    "test_objective_losses",
    "test_own_loss",
    "test_plots",
    "test_precision",
    "test_progress",
    "test_quasi_newton_convergence",
    "test_random_models",
    "test_recovery",
    "test_refit",
    "test_rejections",
    "test_repeats",
    "test_resample_in_fit",
    "test_results",
    "test_rows",
    "test_saturated_units",
    "test_saving",
    "test_scipy_convergence",
    "test_second_interrupts",
    "test_sizes",
    "test_sklearn",
    "test_start_checks",
    "test_states",
    "test_streaming",
    "test_summary",
    "test_trace_callbacks",
    "test_tuner",
    "test_units",
    "test_unidentified",
    "test_unusual_values",
    "test_verification",
}


@pytest.fixture(autouse=True)
def loops(request, monkeypatch):
    name = request.module.__name__.split(".")[-1]
    if BACKEND == "tensorflow" and name in _WITHOUT_XLA:
        compile = kormos.backend.compile
        monkeypatch.setattr(kormos.backend, "compile_loop", compile)


@pytest.fixture
def unconverged():
    """For fits that end at their iteration limit, as they are meant to."""
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
