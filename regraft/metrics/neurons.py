"""Removable, constant and silent neurons, and a network without the removable ones.

A *unit* is a channel of a neuron's output (one neuron of a fully connected layer, one map of a convolution).

- **removable**: no outgoing connection (a residual path is one), or no incoming one and silent for all T at its
  constant input. A connection to or from a removable unit does not count, so this is a fixed point.
- **constant**: no incoming connection but firing, whatever the data (a bias or normalisation drives it). Never removed.
- **silent**: never fired on the data given: a fact about these data, which says nothing about others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import StructureError, UsageError
from regraft.metrics.channels import NORMS, Graph, Tracer
from regraft.metrics.connections import TRANSPOSED, Layer, Wiring, layer_masks, weighted_layers
from regraft.metrics.firing import Neurons, known_steps, neuron_modules
from regraft.metrics.observe import Forward, batches, observing, plain_forward
from regraft.metrics.shrink import physically_removable, shrink


@dataclass(frozen=True)
class NeuronCounts:
    """Units of one neuron module (`name`), and how many of them are removable, constant, silent (see above)."""

    name: str
    units: int
    removable: int
    constant: int
    silent: int


@dataclass(frozen=True)
class NeuronReport:
    """One row for each place where a neuron module is used, and the operations that channels could not be followed
    through (units that feed those count as connected)."""

    layers: tuple[NeuronCounts, ...]
    opaque: tuple[str, ...]

    @property
    def removable(self) -> int:
        """Removable units of the whole network."""
        return sum(row.removable for row in self.layers)

    @property
    def constant(self) -> int:
        """Constant units of the whole network."""
        return sum(row.constant for row in self.layers)

    @property
    def silent(self) -> int:
        """Silent units of the whole network."""
        return sum(row.silent for row in self.layers)

    def __str__(self) -> str:
        width = max([len("neurons"), *(len(row.name) for row in self.layers)])
        lines = [f"{'neurons':<{width}}  {'units':>7}  {'removable':>9}  {'constant':>8}  {'silent':>7}"]
        for row in self.layers:
            lines.append(f"{row.name:<{width}}  {row.units:>7}  {row.removable:>9}  {row.constant:>8}  {row.silent:>7}")
        lines += [f"not followed: {name}" for name in self.opaque]
        return "\n".join(lines)


def inspect_neurons(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    *,
    masks: Wiring | None = None,
    neurons: Neurons = (),
    forward: Forward | None = None,
    limit: int | None = None,
) -> NeuronReport:
    """Count removable, constant and silent units, layer by layer.

    The network is run in eval mode on `data` and watched; no symbolic tracing. Removable and constant units do not
    depend on the values in `data`, silent ones do.

    Args:
        data: one batch of inputs as a tensor, or batches `(x, y)` or `x`.
        masks: a `Topology` or masks by parameter name; without, a connection exists where its weight is not 0.
        neurons: further class names or classes that are spiking neurons.
        forward: called as `forward(model, x)`; for example one that resets the state of the neurons first.
        limit: at most this many batches.

    Raises:
        StructureError: no neuron is known in the model, or none ran.
    """
    graph, connected = _watch(model, data, masks, neurons, forward, limit)
    removed, constant, _ = _fixed_point(graph, connected, torch.zeros(graph.size, dtype=torch.bool))
    fired = _members(graph, graph.fired)
    rows = [
        NeuronCounts(name, len(ids), int(removed[ids].sum()), int(constant[ids].sum()), int((~fired[ids]).sum()))
        for name, _, ids in graph.neurons
    ]
    return NeuronReport(tuple(rows), tuple(sorted(graph.opaque)))


def remove_neurons(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    *,
    masks: Wiring | None = None,
    neurons: Neurons = (),
    forward: Forward | None = None,
    limit: int | None = None,
    also_silent: bool = False,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> nn.Module:
    """A smaller copy of the network in which removable units are physically gone; the original is not touched.

    Same classes, names and order, fewer channels. In eval mode the same function: exactly in float64 (no spike
    differs), up to the order of summation in float32. Absent connections must have weight exactly 0, as a `Topology`
    keeps them. Not removed although removable: units tied to others that stay (a residual sum ties the channels of
    its operands), units whose zero a normalisation turns into something else, units that feed what could not be
    followed, channels of neurons with parameters for each channel, the channels of convolutions with groups
    (depthwise ones are removed whole), and the last unit of a layer. Constant neurons always stay.

    Args:
        data, masks, neurons, forward, limit: as for `inspect_neurons`. The images must have the size used later:
            at the border of a map a constant input is not the same as inside.
        also_silent: remove the units that never fired on `data` too. This changes what the network computes on
            other data; `evaluate` is called on both networks and the change is printed.
        evaluate: `evaluate(model) -> accuracy`.

    Raises:
        UsageError: `also_silent` without `evaluate`: the change of accuracy must be seen.
        StructureError: as `inspect_neurons`, or the forward pass of the model relies on the number of channels.
    """
    if also_silent and evaluate is None:
        raise UsageError("also_silent removes units that other data might need: give evaluate= to see what it costs")
    if not isinstance(data, Tensor):
        data = list(data)
    graph, connected = _watch(model, data, masks, neurons, forward, limit)
    outputs = _members(graph, {i for _, _, ids in graph.neurons for i in ids.tolist()})
    silent = outputs & ~_members(graph, graph.fired) if also_silent else torch.zeros(graph.size, dtype=torch.bool)
    removed, _, needed = _fixed_point(graph, connected, silent)
    gone = physically_removable(model, graph, removed=removed, needed=needed)
    smaller = shrink(model, graph, gone)
    x, _ = next(batches(model, [data] if isinstance(data, Tensor) else data, 1))
    try:
        with observing(smaller):
            (forward or plain_forward)(smaller, x)
    except (RuntimeError, ValueError) as error:
        raise StructureError(
            f"{type(model).__name__} does not run with fewer channels ({error}): its forward pass relies on their "
            f"number; take it from the tensors (flatten(1) instead of view(-1, 512)), or reset neurons in forward="
        ) from error
    if evaluate is not None:
        before, after = evaluate(model), evaluate(smaller)
        what = "removable and silent" if also_silent else "removable"
        print(f"without {what} neurons: {before:.4f} -> {after:.4f} ({after - before:+.4f})")
    return smaller


def _watch(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    masks: Wiring | None,
    neurons: Neurons,
    forward: Forward | None,
    limit: int | None,
) -> tuple[Graph, dict[str, Tensor]]:
    """The channel graph, and for each layer which input channel is connected to which output: bool `[out, in]`."""
    spiking = neuron_modules(model, neurons)
    if not spiking:
        raise StructureError(
            f"no spiking neuron is known in {type(model).__name__}: name their classes with neurons=['MyNeuron']"
        )
    inside = tuple(f"{name}." for name in spiking)
    layers = {name: layer for name, layer in weighted_layers(model).items() if not name.startswith(inside)}
    norms = {name: m for name, m in model.named_modules() if isinstance(m, NORMS) and not name.startswith(inside)}
    tracer = Tracer(layers, norms, spiking)
    with observing(model) as handles:
        handles.extend(tracer.listen())
        for x, samples in batches(model, [data] if isinstance(data, Tensor) else data, limit):
            tracer.begin(samples, known_steps(spiking))
            with tracer:
                output = (forward or plain_forward)(model, x)
            tracer.finish(output)
    if not tracer.graph.neurons:
        raise StructureError(f"none of the neurons of {type(model).__name__} ran in its forward pass")
    existing = layer_masks(model, masks)
    return tracer.graph, {name: _connected(layers[name], existing[name]) for name, _, _ in tracer.graph.wires}


def _connected(layer: Layer, mask: Tensor) -> Tensor:
    mask = mask.detach().cpu()
    if isinstance(layer, nn.Linear):
        return mask
    pairs = mask.flatten(2).any(2)  # [out, in / groups], transposed [in, out / groups]
    blocks = torch.block_diag(*pairs.to(torch.uint8).chunk(layer.groups)).bool()
    return blocks.T if isinstance(layer, TRANSPOSED) else blocks


def _members(graph: Graph, ids: set[int]) -> Tensor:
    found = torch.zeros(graph.size, dtype=torch.bool)
    found[list(ids)] = True
    return found


def _fixed_point(graph: Graph, connected: dict[str, Tensor], silenced: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(removed, constant, needed)`, one bool a variable; `silenced` units count as removed from the start.

    Forward: which variables does anything that is not removed feed? Backward: which ones does anything that is not
    removed read? Both only grow, so repeating them until nothing changes ends; in a network without loops over time
    the second round already changes nothing.
    """
    driven, fired = _members(graph, graph.driven), _members(graph, graph.fired)
    size = -1
    while size != (size := int(driven.sum())):
        for name, before, after in graph.wires:
            fed = connected[name].any(1) if before is None else (connected[name] & driven[before]).any(1)
            driven[after] |= fed
        for before, after in graph.links:
            driven[after] |= driven[before]
        for _, before, after in graph.neurons:
            driven[after] |= (driven[before] | fired[after]) & ~silenced[after]
    needed = _members(graph, graph.needed)
    silent = silenced.clone()
    for _, before, after in graph.neurons:
        silent[after] |= ~driven[before] & ~fired[after]
    size = -1
    while size != (size := int(needed.sum())):
        for _, before, after in reversed(graph.neurons):
            needed[before[needed[after] & ~silent[after]]] = True
        for before, after in reversed(graph.links):
            needed[before[needed[after]]] = True
        for name, before, after in reversed(graph.wires):
            if before is not None:
                read = (connected[name] & needed[after][:, None]).any(0)
                needed[before[read]] = True  # several entries of `before` may be one variable (flatten)
    removed, constant = torch.zeros_like(needed), torch.zeros_like(needed)
    for _, before, after in graph.neurons:
        removed[after] = silent[after] | ~needed[after]
        constant[after] = ~driven[before] & fired[after] & ~removed[after]
    return removed, constant, needed
