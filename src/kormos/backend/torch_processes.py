"""Processes that `torch.distributed` connects."""

import time
from typing import Any

import numpy as np
import torch

from kormos.backend.common import in_a_line
from kormos.types import Vector

# Seconds to wait for the answers of other processes about a lost one.
_PATIENCE = 2.0


def process_group(owner: Any) -> Any:
    del owner  # PyTorch does not know which model a group trains.
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_world_size() == 1:
        return None
    return distributed.group.WORLD


def place_in(group: Any) -> tuple[int, int]:
    ranks = torch.distributed
    return ranks.get_rank(group), ranks.get_world_size(group)


def add_up(group: Any, vector: Vector) -> Vector:
    is_nccl = torch.distributed.get_backend(group) == "nccl"
    # A copy, because the sum is written over it.
    tensor = torch.tensor(
        np.asarray(vector), device="cuda" if is_nccl else "cpu"
    )
    torch.distributed.all_reduce(tensor, group=group)
    return tensor.cpu().numpy()


def named_loss(group: Any, error: Exception) -> str:
    said = in_a_line(error)
    missing = _missing_in(group)
    return f"no answer from processes {missing}: {said}" if missing else said


def _missing_in(group: Any) -> list[int]:
    """The numbers of the processes that do not answer.

    The remaining processes sign in at the store through which they found each
    other.
    """
    own, count = place_in(group)
    missing, end = {*range(count)} - {own}, time.monotonic() + _PATIENCE
    try:
        store = group.get_group_store()
        losses = store.add(f"kormos/losses/{own}", 1)
        while missing and time.monotonic() < end:
            time.sleep(0.05)
            missing -= {
                i
                for i in missing
                if store.add(f"kormos/losses/{i}", 0) >= losses
            }
    except Exception:
        # torch before 2.7 gives no access to the store. If the process that
        # holds the store has ended, it is lost.
        missing = missing if count == 2 else set()
    return sorted(missing)
