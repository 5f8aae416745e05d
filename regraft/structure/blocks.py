"""Scopes as matrices: tensors of several layers seen as `[G, M]`, G groups within which counts are held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Some layers and their number of groups: one layer, one layer by rows, or the network as one."""

    names: tuple[str, ...]
    groups: int


def blocks(scope: str, shapes: Mapping[str, Sequence[int]]) -> list[Block]:
    """The blocks of a scope over layers of these shapes."""
    if scope == "network":
        return [Block(tuple(shapes), 1)]
    return [Block((name,), shape[0] if scope == "row" else 1) for name, shape in shapes.items()]


def gather(block: Block, tensors: Mapping[str, Tensor]) -> Tensor:
    """The block's tensors as one matrix `[G, M]`, in logical order whatever their memory format."""
    if len(block.names) == 1:
        return tensors[block.names[0]].reshape(block.groups, -1)
    return torch.cat([tensors[name].reshape(1, -1) for name in block.names], dim=1)


def scatter(block: Block, matrix: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Write a matrix `[G, M]` back into the block's tensors, in place."""
    parts = matrix.reshape(-1).split([tensors[name].numel() for name in block.names])
    for name, part in zip(block.names, parts, strict=True):
        tensors[name].copy_(part.reshape(tensors[name].shape))
