"""Arguments of kormos 0.1, and what replaces them."""

from typing import Any

_PROGRESS = "`verbose` of `fit` shows the progress."
_DERIVATIVES = "Leave it out: derivatives are exact."
_LOADING = "Pass it to a `keras.utils.PyDataset` instead."
_OBJECTIVE = "`kormos.Objective(model, x, y)` has"

# Names that other libraries use for these methods.
OTHER_NAMES = {
    "levenberg-marquardt": "lm",
    "l-m": "lm",
    "quasi-newton": "lbfgs",
    "limited-memory bfgs": "lbfgs",
    "gn": "gauss-newton",
    "self-scaled broyden": "ssbroyden",
    "simplex": "nelder-mead",
    "trust-region": "trust-ncg",
}
ARGUMENTS = {
    "dtype": "Leave it out: every solver computes in float64. "
    "`fit(..., precision='float64')` evaluates the model in it too.",
    "max_cache_entries": "Leave it out: no point is evaluated twice.",
    "workers": _LOADING,
    "use_multiprocessing": _LOADING,
    "max_queue_size": _LOADING,
    "callback": "Use `callbacks`, a list of Keras callbacks.",
    "maxiter": "Use `epochs`.",
}
OPTIONS = {
    "disp": _PROGRESS,
    "iprint": _PROGRESS,
    "maxcors": "It is 'maxcor'.",
    "return_all": "`history.iterations` has every iteration.",
    "eps": _DERIVATIVES,
    "finite_diff_rel_step": _DERIVATIVES,
    "workers": _DERIVATIVES,
}
ATTRIBUTES = {
    "minimize": "Use `kormos.fit(model, x, y, optimizer=...)`, or "
    "`kormos.minimize` for your own loss.",
    "func_and_grad": f"{_OBJECTIVE} `value_and_grad`.",
    "func": f"{_OBJECTIVE} `value`.",
    "grad": f"{_OBJECTIVE} `value_and_grad`.",
    "hessp": f"{_OBJECTIVE} `hvp`.",
    "get_weights": f"{_OBJECTIVE} `initial_position`.",
}


def advice(names: Any, table: dict[str, str]) -> str:
    """Sentences that say what to write instead of these names, if known."""
    said = [f" Of {name!r}: {table[name]}" for name in names if name in table]
    return "".join(said)
