"""What execution has to know of a network's wiring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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

    def owed(self, name: str) -> Tensor | None:
        """Absent connections of a layer whose gradients the coming backward pass owes; None: nobody asks."""
        if name not in self.masks or not self._topology.dense_gradient_due:
            return None
        candidates = self._topology.candidates
        return ~self.masks[name] if candidates is None else candidates.get(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return Frozen({name: mask.clone() for name, mask in self.masks.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, ({name: mask.clone() for name, mask in self.masks.items()},)


class Frozen:
    """The wiring of a copy: it stays as it is."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self.masks = masks

    def owed(self, name: str) -> None:
        """Nothing grows here."""


@dataclass
class Wired:
    """A layer, its density and its pattern, made anew when its mask has changed; one without a mask is whole."""

    module: nn.Conv2d | nn.Linear
    name: str
    _version: int = -1
    _density: float = 1.0
    _pattern: Pattern | None = None

    def density(self, wiring: Wiring | Frozen) -> float:
        """As it is now."""
        mask = wiring.masks.get(self.name)
        if mask is not None and self._version != mask._version:
            self._version, self._pattern = mask._version, None
            self._density = float(mask.sum()) / mask.numel()
        return self._density

    def pattern(self, wiring: Wiring | Frozen, geometry: Geometry) -> Pattern:
        """Of the connections as they are now."""
        self.density(wiring)  # which looks whether the mask has changed
        if self._pattern is None or self._pattern.geometry != geometry:
            mask = wiring.masks.get(self.name)
            self._pattern = Pattern(torch.ones(self.module.weight.shape) > 0 if mask is None else mask, geometry)
        return self._pattern

    def learnt(self, wiring: Wiring | Frozen, geometry: Geometry) -> Pattern | Literal["all"]:
        """The connections, existing or not, whose gradients the coming backward pass has to give."""
        absent = wiring.owed(self.name) if torch.is_grad_enabled() else None
        if absent is None or not bool(absent.any()):
            return self.pattern(wiring, geometry)
        learnt = wiring.masks[self.name] | absent
        return "all" if bool(learnt.all()) else Pattern(learnt, geometry)
