"""Copies values of the first process to the other processes before a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np

from kormos import backend
from kormos.data.variables import assign
from kormos.optimizers.stage import StageProgress
from kormos.processes import ALONE
from kormos.processes import Processes
from kormos.processes import current
from kormos.processes import processes_of
from kormos.solvers import solver_state

if TYPE_CHECKING:
    from kormos.optimizers.base import BatchOptimizer


def processes_of_data(
    fn: Any, variables: Any, *args: Any, data: Any = None, **kwargs: Any
) -> Processes:
    """The processes that share the data of a function's call.

    Args:
        fn: the function of the data.
        variables: the variables that it reads.
        *args, **kwargs: other arguments of the call, which are not used.
        data: the data, or `None`.
    """
    return ALONE if data is None else processes_of(variables)


def share_values(variables: Sequence[keras.Variable]) -> None:
    """Gives variables the values that they have on the first process."""
    processes = current()
    if processes.is_alone or not variables:
        return

    def values() -> list[Any]:
        return [np.array(backend.to_numpy(v)) for v in variables]

    found = processes.from_first(values)
    if not processes.is_first:
        for variable, value in zip(variables, found, strict=True):
            assign(variable, value)


def share_optimizer(optimizer: BatchOptimizer) -> None:
    """Gives an optimizer the counters and the state of the first process."""
    processes = current()
    if processes.is_alone:
        return
    share_values(optimizer.variables)

    def state() -> tuple[int, dict[str, Any], StageProgress | None]:
        store: dict[str, Any] = {}
        if optimizer.solver_state is not None:
            optimizer.solver_state.save(store)
        arrays = {name: np.asarray(value) for name, value in store.items()}
        return optimizer.loads, arrays, optimizer.stage_progress

    loads, store, progress = processes.from_first(state)
    if not processes.is_first:
        optimizer.loads = loads
        optimizer.stage_progress = progress
        optimizer.solver_state = solver_state.load(store)[0]
