"""Callbacks for `fit` and for `kormos.least_squares`."""

from kormos.session.backup import BackupAndRestore
from kormos.session.resample import Resample

__all__ = ["BackupAndRestore", "Resample"]
