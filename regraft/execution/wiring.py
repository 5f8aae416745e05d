"""What execution has to know of a network's wiring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.execution.pattern import Geometry, Pattern
from regraft.structure import Topology


class Wiring:
    """Masks by parameter name, and whether the coming backward pass owes the gradients of absent connections."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    @property
    def masks(self) -> Mapping[str, Tensor]:
        return self._topology.masks

    @property
    def dense_gradient_due(self) -> bool:
        return self._topology.dense_gradient_due

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return Frozen({name: mask.clone() for name, mask in self.masks.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, ({name: mask.clone() for name, mask in self.masks.items()},)


class Frozen:
    """The wiring of a copy: it stays as it is."""

    dense_gradient_due = False

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self.masks = masks


@dataclass
class Wired:
    """A layer whose weights are wired: its density and its patterns, made anew when its mask has changed."""

    module: nn.Conv2d | nn.Linear
    name: str
    _version: int = -1
    _density: float = 1.0
    _pattern: Pattern | None = None
    _everything: Pattern | None = None

    def density(self, wiring: Wiring | Frozen) -> float:
        """As it is now."""
        mask = wiring.masks[self.name]
        if self._version != mask._version:
            self._version, self._pattern = mask._version, None
            self._density = float(mask.sum()) / mask.numel()
        return self._density

    def patterns(self, wiring: Wiring | Frozen, geometry: Geometry) -> tuple[Pattern, Pattern | None]:
        """Of the existing connections, and of all where the coming backward pass owes gradients to the absent ones."""
        mask = wiring.masks[self.name]
        if self._pattern is None or self._pattern.geometry != geometry:
            self._pattern = Pattern(mask, geometry)
        if not (torch.is_grad_enabled() and wiring.dense_gradient_due):
            return self._pattern, None
        if self._everything is None or self._everything.geometry != geometry:
            self._everything = Pattern(torch.ones_like(mask), geometry)
        return self._pattern, self._everything
