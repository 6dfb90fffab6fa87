"""Names and options of SciPy's methods."""

import keras
import numpy as np
import pytest
from keras import ops
from test_scipy import ALL
from test_scipy import START
from test_scipy import Rosenbrock
from test_scipy import run

import kormos
from conftest import linear
from kormos.optimizers import ScipyBatchOptimizer


def test_names_in_any_letter_case():
    v = keras.Variable(np.ones(2))
    model = linear()
    for name in ("Newton-CG", "L-BFGS-B", "trust-NCG", "SLSQP", "CobyQA"):
        optimizer = kormos.optimizers.get(name)
        assert isinstance(optimizer, ScipyBatchOptimizer)
        assert optimizer.method == name.lower()
        assert ScipyBatchOptimizer(method=name).stages(1)
        model.compile(optimizer=name, loss="mse")
        assert model.optimizer.method == name.lower()
    assert kormos.minimize(lambda: ops.sum(v**2), [v], "L-bfgs-B").success
    assert kormos.optimizers.get("SciPy").method == "l-bfgs-b"
    assert kormos.optimizers.get(optimizer) is optimizer


@pytest.mark.parametrize("identifier", ["adam", "l-bfgs", None, ["cg"], "sgd"])
def test_get_refuses_what_is_not_ours(identifier):
    with pytest.raises(ValueError, match="l-bfgs-b.*Received"):
        kormos.optimizers.get(identifier)


def test_unknown_method_raises():
    with pytest.raises(ValueError, match="trust-exact.*method='newton'"):
        ScipyBatchOptimizer(method="newton")


# A sensible value for every option, in three dimensions.
OPTIONS = {
    "nelder-mead": {
        "maxfev": 99,
        "initial_simplex": np.eye(4, 3),
        "xatol": 1e-5,
        "fatol": 1e-5,
        "adaptive": True,
    },
    "powell": {"maxfev": 99, "xtol": 1e-5, "ftol": 1e-5, "direc": np.eye(3)},
    "cg": {"gtol": 1e-6, "norm": 2, "c1": 1e-4, "c2": 0.3},
    "bfgs": {
        "gtol": 1e-6,
        "norm": 2,
        "xrtol": 1e-9,
        "c1": 1e-4,
        "c2": 0.8,
        "hess_inv0": np.eye(3),
    },
    "newton-cg": {"xtol": 1e-6, "c1": 1e-4, "c2": 0.8},
    "l-bfgs-b": {
        "maxcor": 5,
        "ftol": 1e-9,
        "gtol": 1e-6,
        "maxfun": 99,
        "maxls": 30,
    },
    "tnc": {
        "scale": np.ones(3),
        "offset": np.zeros(3),
        "maxCGit": 5,
        "eta": 0.3,
        "stepmx": 5,
        "accuracy": 1e-7,
        "minfev": 0,
        "ftol": 1e-9,
        "xtol": 1e-9,
        "gtol": 1e-6,
        "rescale": 1.5,
        "maxfun": 99,
    },
    "cobyla": {"rhobeg": 0.5, "tol": 1e-5, "catol": 1e-6},
    "cobyqa": {
        "maxfev": 99,
        "f_target": -1,
        "feasibility_tol": 1e-6,
        "initial_tr_radius": 0.5,
        "final_tr_radius": 1e-5,
        "scale": False,
    },
    "slsqp": {"ftol": 1e-8},
    "trust-constr": {
        "xtol": 1e-9,
        "gtol": 1e-9,
        "barrier_tol": 1e-9,
        "sparse_jacobian": False,
        "initial_constr_penalty": 2.0,
        "initial_tr_radius": 0.5,
        "initial_barrier_parameter": 0.2,
        "initial_barrier_tolerance": 0.2,
        "factorization_method": None,
    },
    "dogleg": {},
    "trust-ncg": {},
    "trust-exact": {},
    "trust-krylov": {"inexact": False},
}
for trust_region in ("dogleg", "trust-ncg", "trust-exact", "trust-krylov"):
    OPTIONS[trust_region].update(
        initial_trust_radius=0.5, max_trust_radius=50.0, eta=0.1, gtol=1e-6
    )


@pytest.mark.parametrize("method", ALL)
def test_every_known_option_is_one_of_scipy(method):
    with pytest.raises(ValueError) as refusal:
        ScipyBatchOptimizer(method=method, options={"maxcors": 9, "zeta": 1})
    known = {*OPTIONS[method], "maxiter"}
    assert str(sorted(known)) in str(refusal.value)
    assert str(refusal.value).endswith("Received: maxcors, zeta")
    # An option that SciPy does not know would raise.
    objective = Rosenbrock(START[:3])
    _, _, iterates = run(objective, method, 1, options=OPTIONS[method])
    assert len(iterates) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"maxiter": 2.5}},
        {"options": {"maxiter": -1}},
        {"options": [5]},
        {"epochs": "ten"},
        {"tol": "tight"},
    ],
)
def test_malformed_settings_raise(settings):
    with pytest.raises(ValueError, match="Received"):
        ScipyBatchOptimizer(**settings)


@pytest.mark.parametrize(
    "method, options",
    [
        ("l-bfgs-b", {"maxfun": 5}),
        ("tnc", {"maxfun": 5}),
        ("nelder-mead", {"maxfev": 12}),
        ("powell", {"maxfev": 12}),
        ("cobyqa", {"maxfev": 20}),
    ],
)
def test_a_limit_on_evaluations_ends_the_run(method, options):
    outcome, problem, _ = run(Rosenbrock(), method, options=options)
    assert outcome.status == "evaluation limit"
    (limit,) = options.values()
    # L-BFGS-B checks its limit between line searches; Powell counts points
    # twice.
    assert 0.5 * limit < problem.fg_evals <= limit + 5


def test_a_target_is_named():
    outcome, *_ = run(Rosenbrock(), "cobyqa", options={"f_target": 1.0})
    assert outcome.status == "converged"
    assert (outcome.test, outcome.threshold) == ("f_target", 1.0)
    assert outcome.value == outcome.loss <= 1
