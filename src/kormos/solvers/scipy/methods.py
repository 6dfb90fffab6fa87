"""The arguments and final messages of the methods of SciPy's `minimize`.

Source: the reference of `scipy.optimize.minimize`, SciPy 1.16 and 1.17.
"""

import dataclasses
from collections.abc import Callable

from kormos.solvers import statuses

# SciPy counts iterations in C integers. kormos counts its own.
UNLIMITED = 2**31 - 2

_TRUST_REGION = (
    "initial_trust_radius",
    "max_trust_radius",
    "eta",
    "gtol",
)


@dataclasses.dataclass(frozen=True)
class ScipyMethod:
    """The properties of one method.

    Attributes:
        name: SciPy's name, in lower case.
        options: the names of its options. `maxiter`, which every method
            takes, limits the epochs and is not among them.
        tolerances: default values of the options that end it successfully. They
            are our choice, or SciPy's own. An end by them is verified, so they
            only decide how early.
        strict: their values when the method starts where it ended before.
        limits: options that switch off SciPy's own limits, because those count
            differently.
        gradient: whether it uses the gradient.
        hessp: whether it uses products with the Hessian.
        hessian: whether it uses the dense Hessian.
        square: whether it keeps at least one dense matrix of shape `(size,
            size)`.
        bounds: whether it takes bounds.
        constraints: the types of constraints that it takes.
        splits_equalities: whether an equality must be given to it as two
            inequalities.
        preamble: function from the number of parameters to the number of calls
            of the callback before the first iteration.
        shows_trials: whether its callback shows the first trial of a step
            rather than the accepted point. Accepted points then are those
            where it asks for the gradient, and the last one.
    """

    name: str
    options: tuple[str, ...]
    tolerances: dict[str, float]
    strict: dict[str, float]
    limits: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"maxiter": UNLIMITED}
    )
    gradient: bool = True
    hessp: bool = False
    hessian: bool = False
    square: bool = False
    bounds: bool = False
    constraints: tuple[str, ...] = ()
    splits_equalities: bool = False
    preamble: Callable[[int], int] = lambda parameters: 0
    shows_trials: bool = False


_METHODS = [
    ScipyMethod(
        "nelder-mead",
        ("maxfev", "initial_simplex", "xatol", "fatol", "adaptive"),
        {"xatol": 1e-4, "fatol": 1e-4},
        strict={"xatol": 1e-8, "fatol": 1e-14},
        limits={"maxiter": UNLIMITED, "maxfev": UNLIMITED},
        gradient=False,
        bounds=True,
        square=True,
    ),
    ScipyMethod(
        "powell",
        ("maxfev", "xtol", "ftol", "direc"),
        {"ftol": 1e-4, "xtol": 1e-4},
        strict={"ftol": 1e-14, "xtol": 1e-8},
        limits={"maxiter": UNLIMITED, "maxfev": UNLIMITED},
        gradient=False,
        bounds=True,
        square=True,
    ),
    ScipyMethod(
        "cg",
        ("gtol", "norm", "c1", "c2"),
        {"gtol": 1e-6},
        strict={"gtol": 0.0},
    ),
    ScipyMethod(
        "bfgs",
        ("gtol", "norm", "xrtol", "c1", "c2", "hess_inv0"),
        {"gtol": 1e-6, "xrtol": 0.0},
        strict={"gtol": 0.0},
        square=True,
    ),
    ScipyMethod(
        "newton-cg",
        ("xtol", "c1", "c2"),
        {"xtol": 1e-7},
        strict={"xtol": 0.0},
        hessp=True,
    ),
    ScipyMethod(
        "l-bfgs-b",
        ("maxcor", "ftol", "gtol", "maxfun", "maxls"),
        {"gtol": 1e-6, "ftol": 10 * 2.0**-52},
        strict={"gtol": 0.0, "ftol": 0.0},
        limits={"maxiter": UNLIMITED, "maxfun": UNLIMITED},
        bounds=True,
    ),
    ScipyMethod(
        "tnc",
        (
            "scale",
            "offset",
            "maxCGit",
            "eta",
            "stepmx",
            "accuracy",
            "minfev",
            "ftol",
            "xtol",
            "gtol",
            "rescale",
            "maxfun",
        ),
        {"ftol": 2.0**-40, "xtol": 2.0**-40, "gtol": 1e-6},
        strict={"ftol": 0.0, "xtol": 0.0, "gtol": 0.0},
        # Its `maxiter` would be a number of evaluations.
        limits={"maxfun": UNLIMITED},
        bounds=True,
    ),
    ScipyMethod(
        "cobyla",
        ("rhobeg", "tol", "catol"),
        {"tol": 1e-4},
        strict={"tol": 1e-8},
        # A number of evaluations, for which the method may allocate memory.
        limits={"maxiter": 10**6},
        gradient=False,
        bounds=True,
        constraints=("eq", "ineq"),
        # From 1.16 on, SciPy takes equalities, and splits them in this way
        # itself.
        splits_equalities=True,
        square=True,
    ),
    ScipyMethod(
        "cobyqa",
        (
            "maxfev",
            "f_target",
            "feasibility_tol",
            "initial_tr_radius",
            "final_tr_radius",
            "scale",
        ),
        {"final_tr_radius": 1e-6},
        strict={"final_tr_radius": 1e-9},
        limits={"maxiter": 10**6, "maxfev": 10**6},
        gradient=False,
        bounds=True,
        constraints=("eq", "ineq"),
        # It calls back after every evaluation, also those for its first model.
        preamble=lambda parameters: 2 * parameters + 1,
        square=True,
    ),
    ScipyMethod(
        "slsqp",
        ("ftol",),
        {"ftol": 1e-12},
        strict={"ftol": 1e-16},
        bounds=True,
        constraints=("eq", "ineq"),
        # It asks for the gradient at the start.
        preamble=lambda parameters: 1,
        shows_trials=True,
        square=True,
    ),
    ScipyMethod(
        "trust-constr",
        (
            "xtol",
            "gtol",
            "barrier_tol",
            "sparse_jacobian",
            "initial_constr_penalty",
            "initial_tr_radius",
            "initial_barrier_parameter",
            "initial_barrier_tolerance",
            "factorization_method",
        ),
        {"gtol": 1e-8, "xtol": 1e-8, "barrier_tol": 1e-8},
        strict={"gtol": 1e-12, "xtol": 1e-12, "barrier_tol": 1e-12},
        hessp=True,
        bounds=True,
        constraints=("eq", "ineq"),
        # It calls back at the start.
        preamble=lambda parameters: 1,
    ),
    ScipyMethod(
        "dogleg", _TRUST_REGION, {"gtol": 1e-6}, {"gtol": 0.0}, hessian=True
    ),
    ScipyMethod(
        "trust-ncg", _TRUST_REGION, {"gtol": 1e-6}, {"gtol": 0.0}, hessp=True
    ),
    ScipyMethod(
        "trust-exact",
        _TRUST_REGION,
        {"gtol": 1e-6},
        strict={"gtol": 0.0},
        hessian=True,
    ),
    ScipyMethod(
        "trust-krylov",
        (*_TRUST_REGION, "inexact"),
        {"gtol": 1e-6},
        strict={"gtol": 0.0},
        hessp=True,
    ),
]

METHODS = {method.name: method for method in _METHODS}

# Parts of SciPy's messages, in lower case, about runs that failed.
_FAILURES = (
    ("not positive definite", statuses.LINE_SEARCH_FAILED),
    ("nan", statuses.NON_FINITE),
    ("infeasible", statuses.INFEASIBLE),
    ("incompatible", statuses.INFEASIBLE),
    ("constraint", statuses.INFEASIBLE),
    ("subproblem", statuses.INFEASIBLE),
    ("rounding", statuses.NOISE_FLOOR),
    ("evaluat", statuses.EVALUATION_LIMIT),
    ("iteration", statuses.ITERATION_LIMIT),
)


def failure(message: str) -> str:
    """The status for a message of SciPy's about a run that failed."""
    message = message.lower()
    for words, status in _FAILURES:
        if words in message:
            return status
    return statuses.LINE_SEARCH_FAILED
