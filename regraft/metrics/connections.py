"""Which connections exist: exact integers for each prunable tensor, and the densities made of them.

*Existing* is the mask where there is one, else `w != 0`: a connection that was just grown has weight 0 and exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from regraft.errors import ShapeError, StructureError, nearest

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Layer = (
    nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)  # what operations are counted for; subclasses included


class HasMasks(Protocol):
    """A `Topology`, or anything else with masks by parameter name."""

    @property
    def masks(self) -> Mapping[str, Tensor]: ...


Wiring = HasMasks | Mapping[str, Tensor]


@dataclass(frozen=True)
class Connections:
    """Existing connections of one prunable tensor, as exact integers. `name` is the parameter's."""

    name: str
    existing: int
    of: int

    @property
    def density(self) -> float:
        """`existing / of`."""
        return self.existing / self.of if self.of else 0.0


def weighted_layers(model: nn.Module) -> dict[str, Layer]:
    """Every Linear and (transposed) Conv module by name; a module used twice appears once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED))}


def weight_name(layer: str) -> str:
    """The parameter name of a layer's weight."""
    return f"{layer}.weight" if layer else "weight"


def given_masks(model: nn.Module, wiring: Wiring | None) -> dict[str, Tensor] | None:
    """The masks handed in, checked against the parameters of the model; None where none were.

    Raises:
        StructureError: for a mask whose name is not a parameter's, or an object that has no masks.
        ShapeError: for a mask that does not have its parameter's shape.
    """
    if wiring is None:
        return None
    masks = wiring if isinstance(wiring, Mapping) else getattr(wiring, "masks", None)
    if not isinstance(masks, Mapping):
        raise StructureError(f"{type(wiring).__name__} has no masks: give a Topology or a mapping of name to tensor")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise StructureError(f"a mask is named {name!r}, no parameter is: {nearest(name, parameters)}")
        if mask.shape != parameters[name].shape:
            raise ShapeError(f"the mask of {name} is {tuple(mask.shape)}, its weight {tuple(parameters[name].shape)}")
    return {name: mask.bool() for name, mask in masks.items()}


def layer_masks(model: nn.Module, wiring: Wiring | None) -> dict[str, Tensor]:
    """Layer name -> bool tensor of its existing connections, for every weighted layer.

    A tensor shared by two layers has one mask under one name and is found for both.
    """
    masks = given_masks(model, wiring) or {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_identity = {id(parameters[name]): mask for name, mask in masks.items()}
    return {
        name: by_identity[id(layer.weight)] if id(layer.weight) in by_identity else layer.weight.detach() != 0
        for name, layer in weighted_layers(model).items()
    }


def count_connections(model: nn.Module, wiring: Wiring | None = None) -> tuple[Connections, ...]:
    """Existing connections of each prunable tensor: those that have a mask, or the Linear and Conv weights.

    A tensor shared by several layers is counted once. Raises as `given_masks`.
    """
    masks = given_masks(model, wiring)
    if masks is None:
        masks, seen = {}, set()
        for name, layer in weighted_layers(model).items():
            if id(layer.weight) not in seen:
                seen.add(id(layer.weight))
                masks[weight_name(name)] = layer.weight.detach() != 0
    return tuple(Connections(name, int(mask.sum()), mask.numel()) for name, mask in masks.items())


def count_parameters(model: nn.Module, connections: tuple[Connections, ...]) -> tuple[int, int]:
    """`(existing, of)` over all parameters: outside the prunable tensors (biases, normalisation) all exist."""
    total = sum(parameter.numel() for parameter in model.parameters())
    absent = sum(c.of - c.existing for c in connections)
    return total - absent, total
