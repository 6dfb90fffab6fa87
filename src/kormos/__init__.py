"""Deterministic, full-batch optimizers for Keras 3 models."""

from kormos import callbacks as callbacks
from kormos import dispatch
from kormos import models as models
from kormos import optimizers as optimizers
from kormos import rematerialization
from kormos.fit import fit as fit
from kormos.functional import least_squares as least_squares
from kormos.functional import minimize as minimize
from kormos.inspection.check import check as check
from kormos.inspection.plots import plot_history as plot_history
from kormos.objective import Objective as Objective
from kormos.precision import enable_float64 as enable_float64
from kormos.precision import precision as precision
from kormos.run import ConvergenceWarning as ConvergenceWarning

dispatch.install()
rematerialization.install()

__version__ = "1.0.0.dev0"
