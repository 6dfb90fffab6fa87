"""Callbacks for `model.fit` and for `kormos.least_squares`."""

from kormos.session.backup import BackupAndRestore
from kormos.session.resample import Resample
from kormos.session.reweigh import Reweigh

__all__ = ["BackupAndRestore", "Resample", "Reweigh"]
