"""The channel graph of a network: which channel feeds which, found by running it once and watching.

Nothing is traced symbolically, so any Python in `forward` will do (folding, loops over time, shape checks). Layers,
normalisation and neurons are watched as modules, all else as the aten operations that really ran. An operation that
is not understood makes what enters it count as needed and what leaves it count as driven: then fewer units than
might be are called removable, never more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regraft.metrics.axes import ELEMENTWISE, follow
from regraft.metrics.connections import Layer
from regraft.metrics.firing import channel_axis
from regraft.metrics.observe import first_tensor
from regraft.metrics.synops import spatial_axes

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Label:
    """Which channel lies where: entry `i` along `axis` of a tensor belongs to channel variable `ids[i]`."""

    axis: int
    ids: Tensor

    @property
    def key(self) -> tuple:
        return tuple(self.ids.tolist())


@dataclass
class Graph:
    """Channel variables, numbered from 0, and what joins them.

    A variable is one channel at one place of the network: behind a layer, a normalisation, an addition, a neuron.

    Attributes:
        links: (from, to): the same channel in another tensor (normalisation, addition).
        wires: (layer, from or None, to): through the connections of a weighted layer.
        neurons: (module, from, to): through a neuron.
        norms: (module, ids): normalised channels.
        driven, needed: variables that anything outside the graph feeds, or reads.
        fixed: variables whose number an operation relies on: never physically removed.
        fired: outputs of neurons that were not 0 throughout.
        opaque: what could not be followed, for the reader.
    """

    size: int = 0
    links: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    wires: list[tuple[str, Tensor | None, Tensor]] = field(default_factory=list)
    neurons: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    norms: list[tuple[str, Tensor]] = field(default_factory=list)
    driven: set[int] = field(default_factory=set)
    needed: set[int] = field(default_factory=set)
    fixed: set[int] = field(default_factory=set)
    fired: set[int] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)


class Tracer(TorchDispatchMode):
    """Fills a `Graph` while the network runs inside `with tracer:`; give it the output with `finish`."""

    def __init__(
        self, layers: Mapping[str, Layer], norms: Mapping[str, nn.Module], neurons: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.graph = Graph()
        self.leaves: dict[str, nn.Module] = {**neurons, **layers, **norms}
        self._neurons = neurons
        self._layers = layers
        self._labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._blocks: dict[tuple, Tensor] = {}
        self._inside = 0
        self._samples = 0
        self._steps: int | None = None

    # -- running -----------------------------------------------------------------------------------------------

    def listen(self) -> Iterator[Any]:
        """Registers the hooks; yields their handles."""
        for name, module in self.leaves.items():

            def enter(*_: Any) -> None:
                self._inside += 1

            def leave(_: nn.Module, args: tuple, kwargs: dict, out: Any, name: str = name) -> None:
                x = first_tensor(args) if args else first_tensor(list(kwargs.values()))
                if self._inside == 1 and x is not None and out is not None:
                    self._leaf(name, x, out)
                self._inside -= 1  # last: what the line above computes is not the network's

            yield module.register_forward_pre_hook(enter)
            yield module.register_forward_hook(leave, with_kwargs=True, always_call=True)

    def begin(self, samples: int, steps: int | None) -> None:
        """A forward pass over that many samples begins."""
        self._samples, self._steps, self._inside = samples, steps, 0

    def finish(self, output: Any) -> None:
        """Whatever the network returns is needed."""
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._release(leaf, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._inside == 0:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if any(x in self._labels for x in inputs):
                self._operation(func.overloadpacket.__name__, inputs, args, kwargs or {}, out)
        return out

    # -- variables ---------------------------------------------------------------------------------------------

    def _block(self, key: tuple, size: int) -> Tensor:
        """The variables known under `key`, new ones the first time: a layer called at each step has one block."""
        key = (*key, size)
        if key not in self._blocks:
            self._blocks[key] = torch.arange(self.graph.size, self.graph.size + size)
            self.graph.size += size
        return self._blocks[key]

    def _release(self, x: Tensor, reason: str | None) -> None:
        """`x` goes where channels cannot be followed."""
        label = self._labels.get(x)
        if label is not None:
            self.graph.needed.update(label.key)
            self.graph.fixed.update(label.key)
            if reason is not None:
                self.graph.opaque.add(reason)

    def _set(self, x: Tensor, axis: int, ids: Tensor) -> bool:
        if not 0 <= axis < x.dim() or x.shape[axis] != len(ids):
            return False
        self._labels[x] = Label(axis, ids)
        return True

    # -- modules -----------------------------------------------------------------------------------------------

    def _leaf(self, name: str, x: Tensor, out: Any) -> None:
        if name in self._neurons:
            self._neuron(name, x, out)
        elif name in self._layers:
            self._layer(name, x, out)
        else:
            label = self._labels.get(x)
            if label is None:
                return
            if len(label.ids) == getattr(self.leaves[name], "num_features", None):
                ids = self._block(("norm", name, label.key), len(label.ids))
                self._link(label.ids, ids)
                self._once(self.graph.norms, name, ids)
                self._set(out, label.axis, ids)
            else:
                self._release(x, f"{name} (normalised along another axis)")

    def _layer(self, name: str, x: Tensor, out: Tensor) -> None:
        axes = spatial_axes(self._layers[name])
        label = self._labels.get(x)
        if label is not None and label.axis != x.dim() - axes - 1:
            self._release(x, f"{name} (applied along another axis)")
            label = None
        ids = self._block(("layer", name), out.shape[out.dim() - axes - 1])
        self._once(self.graph.wires, name, None if label is None else label.ids, ids)
        self._set(out, out.dim() - axes - 1, ids)

    def _neuron(self, name: str, x: Tensor, out: Any) -> None:
        spikes, module, label = first_tensor(out), self._neurons[name], self._labels.get(x)
        if spikes is None:
            return self._release(x, f"{name} (gives no tensor)")
        if label is None:  # a neuron at the input of the network
            axis = channel_axis(module, spikes.shape, self._samples, self._steps)
            before = self._block(("input", name), spikes.shape[axis])
            self.graph.driven.update(before.tolist())
            self.graph.fixed.update(before.tolist())
        else:
            axis, before = label.axis + spikes.dim() - x.dim(), label.ids
        if not 0 <= axis < spikes.dim() or spikes.shape[axis] != len(before):
            return self._release(x, f"{name} (changes the number of channels)")
        after = self._block(("neuron", name, tuple(before.tolist())), len(before))
        self._once(self.graph.neurons, name, before, after)
        for leaf in tree_leaves(out):  # some return their state too: it lives and dies with the unit
            if isinstance(leaf, Tensor) and leaf.dim() >= spikes.dim():
                self._set(leaf, axis + leaf.dim() - spikes.dim(), after)
            elif isinstance(leaf, Tensor) and not self._set(leaf, axis, after):
                self._set(leaf, axis - 1, after)
        active = (spikes.movedim(axis, 0).flatten(1) != 0).any(1).cpu()
        self.graph.fired.update(after[active].tolist())
        state = [*module.parameters(), *module.buffers()]
        if any(tensor.numel() > 1 for tensor in state):  # thresholds or time constants for each channel
            self.graph.fixed.update(after.tolist())
        if any(parameter.dim() > 1 for parameter in module.parameters()):  # its units feed each other
            self.graph.needed.update(after.tolist())
            self.graph.opaque.add(f"{name} (recurrent)")

    def _once(self, edges: list, name: str, *ids: Tensor | None) -> None:
        key = ("edge", name, *(None if i is None else tuple(i.tolist()) for i in ids))
        if key not in self._blocks:
            self._blocks[key] = torch.empty(0)
            edges.append((name, *ids))

    def _link(self, before: Tensor, after: Tensor) -> None:
        key = ("link", tuple(before.tolist()), tuple(after.tolist()))
        if key not in self._blocks:
            self._blocks[key] = torch.empty(0)
            self.graph.links.append((before, after))

    # -- operations --------------------------------------------------------------------------------------------

    def _operation(self, name: str, inputs: list[Tensor], args: tuple, kwargs: dict, out: Any) -> None:
        tracked = [x for x in inputs if x in self._labels]
        label = self._labels[tracked[0]]
        moved = follow(name, tracked[0], label.axis, label.ids, args, kwargs, out, alone=len(inputs) == 1)
        for result, axis, ids in moved:
            self._set(result, axis, ids)
        joined = name in ("cat", "stack") and self._join(name, args, out)
        if not (moved or joined or (name in ELEMENTWISE and self._mix(name, inputs, out))):
            for x in tracked:
                self._release(x, name)
                if name.endswith("_"):  # written to: what came in is not known
                    self.graph.driven.update(self._labels[x].key)
            for leaf in tree_leaves(out):  # in place: the label would be of what was there before
                if isinstance(leaf, Tensor):
                    self._labels.pop(leaf, None)

    def _mix(self, name: str, inputs: list[Tensor], out: Tensor) -> bool:
        """Elementwise: channel `i` of the result has channel `i` of every operand in it."""
        labels = [(x, self._labels[x]) for x in inputs if x in self._labels]
        back = {x.dim() - label.axis for x, label in labels}
        if len(back) != 1 or len({len(label.ids) for _, label in labels}) != 1:
            return False
        depth, width = back.pop(), len(labels[0][1].ids)
        ids = self._block((name, *(label.key for _, label in labels)), width)
        if not self._set(out, out.dim() - depth, ids):
            return False
        for _, label in labels:
            self._link(label.ids, ids)
        for x in inputs:
            if x not in self._labels and x.numel() > 1:  # of unknown origin: it may carry data
                self.graph.driven.update(ids.tolist())
                if x.dim() >= depth and x.shape[-depth] > 1:
                    self.graph.fixed.update(ids.tolist())
        return True

    def _join(self, name: str, args: tuple, out: Tensor) -> bool:
        """Channels laid behind each other, or the same channels at several times laid along another axis."""
        labels = [label for x in args[0] if (label := self._labels.get(x)) is not None]
        if len(labels) != len(args[0]) or len({label.axis for label in labels}) != 1:
            return False
        dim, axis = (args[1] if len(args) > 1 else 0) % out.dim(), labels[0].axis
        if name == "cat" and dim == axis:
            return self._set(out, axis, torch.cat([label.ids for label in labels]))
        if len({label.key for label in labels}) != 1:
            return False
        return self._set(out, axis + (name == "stack" and dim <= axis), labels[0].ids)
