"""A network seen as segments: where a normalisation, a neuron and a pooling follow each other and nothing else looks.

Only modules whose `forward` is known to be the same list of calls each time are taken apart: `nn.Sequential`, the
blocks of `regraft.models`, and graphs that `spiking()` made. Of anything else only the neurons are executed, and linear
layers with few connections.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from regraft.execution.fused import BatchNorm
from regraft.models.resnet import BasicBlock
from regraft.neurons import LIF
from regraft.neurons.sites import out_of_place

_ADD = (operator.add, torch.add, "add")
_CONTAINERS = (nn.Sequential, BasicBlock)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAKERS = (*_NORMS, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # of memory that nothing else looks at


@dataclass(frozen=True)
class Segment:
    """One or two inputs, added; before each a normalisation or none; behind them a neuron and a 2x2 pooling or none."""

    norms: tuple[BatchNorm | None, ...]
    neuron: LIF
    pool: nn.MaxPool2d | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """In the order of their calls."""
        return [m for m in (*self.norms, self.neuron, self.pool) if m is not None]

    def plain(self, *inputs: Tensor) -> Tensor:
        """What the modules compute by themselves."""
        terms = [y if norm is None else norm(y) for norm, y in zip(self.norms, inputs, strict=True)]
        spikes = self.neuron(terms[0] if len(terms) == 1 else terms[0] + terms[1])
        return spikes if self.pool is None else self.pool(spikes)


@dataclass(frozen=True)
class Slot:
    """The place of a value in a `Program`."""

    index: int


@dataclass(frozen=True)
class Call:
    """One call of a program: a module, a segment, or a function."""

    what: Segment | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slot: int
    done: tuple[int, ...] = ()  # slots that nobody reads after this call


@dataclass(frozen=True)
class Program:
    """The calls of a module's `forward`, and the containers whose own `forward` is thereby never called."""

    calls: tuple[Call, ...]
    slots: int
    result: Any
    containers: tuple[nn.Module, ...]

    @property
    def segments(self) -> list[Segment]:
        return [call.what for call in self.calls if isinstance(call.what, Segment)]

    def run(self, x: Tensor, run: Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]) -> Any:
        """What `forward(x)` returns; `run(call, args, kwargs)` computes each call."""
        values: list[Any] = [None] * self.slots
        values[0] = x
        for call in self.calls:
            args, kwargs = _filled(call.args, values), _filled(call.kwargs, values)
            values[call.slot] = run(call, args, kwargs)
            for slot in call.done:
                values[slot] = None
        return _filled(self.result, values)


def plan(model: nn.Module, wired: Collection[int] = ()) -> Iterator[tuple[nn.Module, Program]]:
    """Modules to be executed, with their programs: the largest that can be taken apart and hold a neuron.

    Args:
        wired: `id` of weights whose linear layers are executed by themselves where no program holds them.
    """
    if isinstance(model, LIF):
        if _fires(model):
            yield model, _alone(Segment((None,), model))
    elif type(model) is nn.Linear:
        if id(model.weight) in wired and "forward" not in vars(model):
            yield model, _alone(model)
    elif _known(model) and any(_fires(module) for module in model.modules()):
        program = _program(model)
        yield model, program
        for call in program.calls:
            if isinstance(call.what, nn.Module) and type(call.what) is not nn.Linear:  # of somebody else
                yield from plan(call.what, wired)
    else:
        for child in model.children():
            yield from plan(child, wired)


def _alone(what: Segment | nn.Module) -> Program:
    return Program((Call(what, (Slot(0),), {}, 1),), 2, Slot(1), ())


def _known(module: nn.Module) -> bool:
    if "forward" in vars(module):  # somebody gave it another
        return False
    return type(module) in _CONTAINERS or (isinstance(module, fx.GraphModule) and _takes_one(module.graph))


def _takes_one(graph: fx.Graph) -> bool:
    return sum(node.op == "placeholder" for node in graph.nodes) == 1


def _fires(module: nn.Module | None) -> bool:
    """Whether it is a neuron, and computes what a `LIF` does: a subclass may do anything."""
    own = isinstance(module, LIF) and type(module).forward is LIF.forward and type(module).stream is LIF.stream
    return own and "forward" not in vars(module)


def _changing(change: Callable[..., Any]) -> Any:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", change, (self, other), {})

    return method


class _Proxy(fx.Proxy):
    """Keeps `x += y` a change in place, that other names of x see too; stock proxies compute `x + y`."""

    __iadd__ = _changing(operator.iadd)
    __isub__ = _changing(operator.isub)
    __imul__ = _changing(operator.imul)
    __itruediv__ = _changing(operator.itruediv)


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _known(m)


@dataclass(frozen=True)
class _Found:
    """A segment in a graph: its inputs, and the nodes that it replaces, of which the last becomes its call."""

    segment: Segment
    inputs: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]


def _program(root: nn.Module) -> Program:
    graph = _Tracer().trace(root)
    found = [_around(node, root) for node in graph.nodes if _fires(_module(node, root))]
    calls: dict[fx.Node, _Found] = {each.nodes[-1]: each for each in found}
    inside = {node for each in found for node in each.nodes[:-1]}
    slots: dict[fx.Node, Slot] = {}
    program: list[Call] = []
    result: Any = None
    for node in graph.nodes:
        if node in inside:
            continue
        here = Slot(len(slots))
        if node.op == "output":
            result = _slotted(node.args[0], slots)
            continue
        if node in calls:
            args = tuple(slots[value] for value in calls[node].inputs)
            program.append(Call(calls[node].segment, args, {}, here.index))
        elif node.op != "placeholder":
            args, kwargs = _slotted(node.args, slots), _slotted(node.kwargs, slots)
            program.append(Call(_target(node, root), args, dict(kwargs), here.index))
        slots[node] = here
    containers = tuple(module for module in root.modules() if module is not root and _known(module))
    return Program(_freeing(program, result), len(slots), result, containers)


def _around(neuron: fx.Node, root: nn.Module) -> _Found:
    """The largest segment around a neuron."""
    module: Any = _module(neuron, root)
    (before,) = neuron.all_input_nodes
    nodes, terms = [neuron], [before]
    if _adds(before, root) and len(before.users) == 1:
        nodes.insert(0, before)
        terms = list(before.all_input_nodes)
    norms, inputs = [], []
    for term in terms:
        norm = _module(term, root)
        alone = type(norm) in _NORMS and "forward" not in vars(norm) and len(term.users) == 1
        norms.append(norm if alone else None)
        inputs.append(term.all_input_nodes[0] if alone else term)
        nodes = [term, *nodes] if alone else nodes
    pool: Any = None
    if len(neuron.users) == 1 and _halves(_module(behind := next(iter(neuron.users)), root)):
        pool = _module(behind, root)
        nodes.append(behind)
    if not _undisturbed(nodes, root):
        return _Found(Segment((None,), module), (before,), (neuron,))
    return _Found(Segment(tuple(norms), module, pool), tuple(inputs), tuple(nodes))


def _adds(node: fx.Node, root: nn.Module) -> bool:
    """Whether the node is the plain sum of two tensors; in place only into one that nothing else looks at."""
    if node.kwargs or len(node.args) != 2 or len(node.all_input_nodes) != 2:
        return False
    changed = node.all_input_nodes[0]
    in_place = node.target in (operator.iadd, "add_")
    return node.target in _ADD or (in_place and type(_module(changed, root)) in _MAKERS and len(changed.users) == 1)


def _undisturbed(nodes: list[fx.Node], root: nn.Module) -> bool:
    """Whether nothing is changed in place from the first to the last of them: they are to be computed together."""
    waiting, node = set(nodes), nodes[-1]
    while waiting:
        if node not in waiting and _changes(node, root):
            return False
        waiting.discard(node)
        node = node.prev
    return True


def _changes(node: fx.Node, root: nn.Module) -> bool:
    asked = node.kwargs.get("inplace") or getattr(_module(node, root), "inplace", False)
    return bool(asked) or out_of_place(node) is not None


def _halves(module: nn.Module | None) -> bool:
    if type(module) is not nn.MaxPool2d or "forward" in vars(module) or module.ceil_mode or module.return_indices:
        return False
    settings = (module.kernel_size, module.stride, module.padding, module.dilation)
    pairs = [(value, value) if isinstance(value, int) else tuple(value) for value in settings]
    return pairs == [(2, 2), (2, 2), (0, 0), (1, 1)]


def _module(node: fx.Node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _target(node: fx.Node, root: nn.Module) -> Callable[..., Any]:
    if node.op == "call_module":
        return root.get_submodule(str(node.target))
    if node.op == "get_attr":
        return _Attribute(root, str(node.target))
    return _Method(node.target) if isinstance(node.target, str) else node.target


@dataclass(frozen=True)
class _Attribute:
    """Reads what may have been replaced since: a parameter or buffer of the root."""

    root: nn.Module
    path: str

    def __call__(self) -> Any:
        return operator.attrgetter(self.path)(self.root)


@dataclass(frozen=True)
class _Method:
    name: str

    def __call__(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(value, self.name)(*args, **kwargs)


def _slotted(value: Any, slots: dict[fx.Node, Slot]) -> Any:
    """`value` with slots in the places of nodes."""
    if isinstance(value, fx.Node):
        return slots[value]
    if isinstance(value, list):  # fx has lists of its own
        return [_slotted(item, slots) for item in value]
    if isinstance(value, tuple):
        return tuple(_slotted(item, slots) for item in value)
    if isinstance(value, dict):
        return {key: _slotted(item, slots) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_slotted(part, slots) for part in (value.start, value.stop, value.step)))
    return value


def _freeing(calls: list[Call], result: Any) -> tuple[Call, ...]:
    """The calls, each with the slots that it is the last to read."""
    later = set(slots_in(result))
    kept = []
    for call in reversed(calls):
        read = {*slots_in(call.args), *slots_in(call.kwargs)} - later
        later |= read
        kept.append(replace(call, done=tuple(sorted(read))))
    return tuple(reversed(kept))


def slots_in(value: Any) -> Iterator[int]:
    """The slots that a value refers to."""
    if isinstance(value, Slot):
        yield value.index
    elif isinstance(value, tuple | list):
        for item in value:
            yield from slots_in(item)
    elif isinstance(value, dict):
        yield from slots_in(tuple(value.values()))
    elif isinstance(value, slice):
        yield from slots_in((value.start, value.stop, value.step))


def _filled(value: Any, values: list[Any]) -> Any:
    """`value` with what lies in its slots."""
    if isinstance(value, Slot):
        return values[value.index]
    if isinstance(value, tuple | list):
        return type(value)(_filled(item, values) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_filled(part, values) for part in (value.start, value.stop, value.step)))
    return value
