"""Taking channels out of a network: which ones can go together, and the slicing of the modules that hold them."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict

import torch
from torch import Tensor, nn

from regraft.metrics.channels import NORMS, Graph
from regraft.metrics.connections import CONVOLUTIONS, TRANSPOSED, weighted_layers


def physically_removable(model: nn.Module, graph: Graph, *, removed: Tensor, needed: Tensor) -> Tensor:
    """Which variables can be cut out without changing what the network computes: one bool a variable.

    Variables that are one channel of one module, or that an elementwise operation joins, go together or stay
    together. A neuron's output may go if the unit is `removed` (its output is 0, or nobody reads it); anything else
    only if nothing needs it. Each layer keeps at least one channel.
    """
    group = _groups(model, graph)
    stays = needed.clone()
    for _, _, after in graph.neurons:
        stays[after] = ~removed[after]
    stays[list(graph.fixed | _unsliceable(model, graph))] = True
    while True:
        blocked = torch.zeros(graph.size, dtype=torch.bool)
        blocked[group[stays]] = True
        gone = ~blocked[group]
        emptied = [ids[0] for _, _, ids in graph.wires if bool(gone[ids].all())]
        if not emptied:
            return gone
        stays[torch.stack(emptied)] = True


def _groups(model: nn.Module, graph: Graph) -> Tensor:
    """The smallest variable among those tied to each one."""
    ties = [*graph.links, *((before, after) for _, before, after in graph.neurons)]
    layers = weighted_layers(model)
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    for name, before, after in graph.wires:
        layer = layers[name]
        if before is not None:
            inputs[name].append(before)
            if not isinstance(layer, nn.Linear) and layer.groups > 1 and layer.groups == layer.in_channels:
                ties.append((before.repeat_interleave(len(after) // len(before)), after))  # depthwise
    normed: dict[str, list[Tensor]] = defaultdict(list)
    for name, ids in graph.norms:
        normed[name].append(ids)
    for uses in (*inputs.values(), *normed.values()):  # one module used at several places is sliced once
        ties += [(uses[0], other) for other in uses[1:]]
    group = torch.arange(graph.size)
    while True:
        before = group.clone()
        for one, other in ties:
            low = torch.minimum(group[one], group[other])
            group.scatter_reduce_(0, one, low, "amin")
            group.scatter_reduce_(0, other, low, "amin")
        group = group[group]
        if torch.equal(group, before):
            return group


def _unsliceable(model: nn.Module, graph: Graph) -> set[int]:
    """Variables at layers whose weight cannot simply be replaced: shared, parametrised, with groups of channels."""
    layers = weighted_layers(model)
    uses = Counter(id(layer.weight) for layer in layers.values())
    outside = {name for name, before, _ in graph.wires if before is None}
    fixed: set[int] = set()
    for name, before, after in graph.wires:
        layer = layers[name]
        if before is not None and name in outside:  # at another place it reads what could not be followed
            fixed.update(before.tolist())
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        depthwise = groups == getattr(layer, "in_channels", 0) and not isinstance(layer, TRANSPOSED)
        if uses[id(layer.weight)] > 1 or "weight" not in layer._parameters or (groups > 1 and not depthwise):
            fixed.update(after.tolist())
            fixed.update([] if before is None else before.tolist())
    return fixed


def shrink(model: nn.Module, graph: Graph, gone: Tensor) -> nn.Module:
    """A copy of the model without the channels of the variables that are `gone`."""
    smaller = copy.deepcopy(model)
    modules = dict(smaller.named_modules())
    ways: dict[str, tuple[Tensor | None, Tensor]] = {}
    for name, before, after in graph.wires:
        if before is not None or name not in ways:
            ways[name] = (None if before is None else ~gone[before], ~gone[after])
    for name, (entering, leaving) in ways.items():
        _slice_layer(modules[name], entering, leaving)
    for name, ids in dict(graph.norms).items():
        _slice_norm(modules[name], ~gone[ids])
    return smaller


def _cut(module: nn.Module, name: str, keep: Tensor, axis: int = 0) -> None:
    """Keep those entries of a parameter or buffer along `axis`; None stays None."""
    value = getattr(module, name, None)
    if value is None:
        return
    cut = value.detach().index_select(axis, keep.nonzero().flatten().to(value.device)).clone()
    setattr(module, name, nn.Parameter(cut, value.requires_grad) if isinstance(value, nn.Parameter) else cut)


def _slice_layer(layer: nn.Module, entering: Tensor | None, leaving: Tensor) -> None:
    out_axis, in_axis = (1, 0) if isinstance(layer, TRANSPOSED) else (0, 1)
    _cut(layer, "bias", leaving)
    if isinstance(layer, nn.Linear):
        _cut(layer, "weight", leaving)
        layer.out_features = int(leaving.sum())
        if entering is not None:
            _cut(layer, "weight", entering, 1)
            layer.in_features = int(entering.sum())
        return
    assert isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED))
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    _cut(layer, "weight", leaving, out_axis if layer.groups == 1 or depthwise else 0)
    layer.out_channels = int(leaving.sum())
    if entering is None:
        return
    if layer.groups == 1:
        _cut(layer, "weight", entering, in_axis)
    layer.in_channels = int(entering.sum())
    if depthwise:
        layer.groups = layer.in_channels


def _slice_norm(norm: nn.Module, keep: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _cut(norm, name, keep)
    assert isinstance(norm, NORMS)
    norm.num_features = int(keep.sum())
