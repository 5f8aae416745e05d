"""Augmentation of whole batches at once, on the device, from a seeded generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shift(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each sample of `[N, ..., H, W]` moved by up to `pixels` in each direction; what enters has the edge's value.

    `generator` lives on the CPU, so that the moves are the same on every device.
    """
    n, h, w = len(x), x.shape[-2], x.shape[-1]
    moves = torch.randint(0, 2 * pixels + 1, (2, n), generator=generator).to(x.device)
    flat = F.pad(x.reshape(n, -1, h, w), [pixels] * 4, mode="replicate")
    rows = (moves[0, :, None] + torch.arange(h, device=x.device))[:, None, :, None]
    columns = (moves[1, :, None] + torch.arange(w, device=x.device))[:, None, None, :]
    sample = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(flat.shape[1], device=x.device)[None, :, None, None]
    return flat[sample, channel, rows, columns].reshape(x.shape)
