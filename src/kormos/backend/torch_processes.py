"""Processes that `torch.distributed` connects."""

import datetime
from typing import Any

import numpy as np
import torch

from kormos.types import Vector

# How long to wait for the name of a process that does not answer.
_PATIENCE = datetime.timedelta(seconds=2)


def process_group(owner: Any) -> Any:
    del owner  # The engine does not know which model is trained on it.
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
    said = " ".join(str(error).split())[:300]
    if torch.distributed.get_backend(group) != "gloo":
        return said
    try:
        torch.distributed.monitored_barrier(
            group, timeout=_PATIENCE, wait_all_ranks=True
        )
    except Exception as barrier:
        return f"{' '.join(str(barrier).split())[:300]} ({said})"
    return said
