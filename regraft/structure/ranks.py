"""Several processes, one wiring: the same random choices everywhere, and a check that the masks agree."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from regraft.errors import StructureError


def generator(seed: int, step: int, index: int, phase: str = "") -> torch.Generator:
    """A generator of its own for each (seed, step, block): the same on every rank, and after every resume."""
    key = hashlib.sha256(f"{seed}/{step}/{index}/{phase}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big", signed=True))


def mask_hash(masks: Mapping[str, Tensor]) -> str:
    """16 hex digits over all masks, the same on all ranks, devices and machines."""
    digest = hashlib.sha256()
    for name, mask in sorted(masks.items()):
        digest.update(name.encode() + np.packbits(mask.cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def agree(own: str, step: int) -> None:
    """Raise `StructureError` if the ranks of a distributed run hold other masks than `own`."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    hashes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hashes, own)
    if len(set(hashes)) > 1:
        raise StructureError(
            f"masks differ over ranks at step {step}: {hashes}. Build model and topology with the same seed on every "
            f"rank, and wrap the model in DistributedDataParallel"
        )
