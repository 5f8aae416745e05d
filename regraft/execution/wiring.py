"""What execution has to know of a network's wiring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
