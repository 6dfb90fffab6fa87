"""Deterministic, full-batch optimizers for Keras 3 models."""

try:
    import keras as _keras  # noqa: F401
except ImportError as error:
    from kormos import missing_backend

    raise missing_backend.explained(error) from error

from kormos import callbacks
from kormos import keras_patch
from kormos import models
from kormos import optimizers
from kormos._fit import fit
from kormos._least_squares import least_squares
from kormos._minimize import minimize
from kormos._solve import solve
from kormos._version import __version__
from kormos.backend import rematerialization
from kormos.failures import LostProcessError
from kormos.failures import OtherProcessFailed
from kormos.float64.settings import enable_float64
from kormos.float64.settings import precision
from kormos.inspection.check import check
from kormos.inspection.plots import plot_history
from kormos.objective import Objective
from kormos.session.run import ConvergenceWarning
from kormos.statistics.comparison import compare
from kormos.statistics.models import summary
from kormos.statistics.partial import PartialSummary
from kormos.statistics.plots import plot_fit
from kormos.statistics.summary import Summary

__all__ = [
    "ConvergenceWarning",
    "LostProcessError",
    "Objective",
    "OtherProcessFailed",
    "PartialSummary",
    "Summary",
    "__version__",
    "callbacks",
    "check",
    "compare",
    "enable_float64",
    "fit",
    "least_squares",
    "minimize",
    "models",
    "optimizers",
    "plot_fit",
    "plot_history",
    "precision",
    "solve",
    "summary",
]

keras_patch.install()
rematerialization.install()


def __dir__() -> list[str]:
    """The public names; all other names are imported by their paths."""
    return list(__all__)
