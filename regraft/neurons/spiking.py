"""An ordinary ReLU network made spiking: one neuron for each place where a ReLU is called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import reduce_graph_module

from regraft.errors import ShapeError, UsageError
from regraft.neurons.fold import fold, repeat, set_steps, unfold
from regraft.neurons.lif import LIF
from regraft.neurons.sites import aliases, batch_free, hard_batch, out_of_place, refuse, relu_site
from regraft.neurons.tracing import owner, place, trace, unused, where


def spiking(
    model: nn.Module, *, steps: int = 4, neuron: Callable[[], nn.Module] = LIF, static: bool = True
) -> fx.GraphModule:
    """A spiking copy of an ordinary ReLU network; `model` itself stays as it is.

    Each call of a ReLU (module or function, in place or not, reused or not, ReLU6 and `clamp(min=0)` too) becomes a
    neuron of its own. Time is folded into the batch, so every other layer stays what it is. Parameters and buffers
    keep their names and values. Whatever depends on no neuron yet is computed once for each image, not T times.

    Squeeze-and-excitation: the ReLU between its two layers becomes a neuron like any other, sigmoid and hard sigmoid
    stay analogue, so what comes out of the multiplication is a gated spike, no longer 0 or 1. Max pooling keeps
    spikes, average pooling makes rates. A ReLU of parameters alone is no activation and stays a ReLU.

    Args:
        model: takes one tensor; can be traced by `torch.fx` (no control flow by data).
        steps: T. `set_steps(result, steps)` changes it later.
        neuron: makes one neuron: a class or a `functools.partial` of one. `nn.ReLU` with `steps=1` gives back the
            ordinary network.
        static: the result takes images `[N, ...]`, else events `[T, N, ...]`.

    Returns:
        A module that returns `[T, N, ...]` wherever the model returned `[N, ...]`; read-out logits carry no spikes.

    Raises:
        UsageError: for a model without ReLU, with other activations (named, with what to do), with neurons already,
            or one that cannot be traced; for `neuron` without `steps` where T > 1 would need them.
        ShapeError: if `steps` is below 1; when called, for events of another T.

    >>> net = spiking(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), steps=4)
    >>> net(torch.rand(7, 3)).shape
    torch.Size([4, 7, 2])
    """
    if any(_is_neuron(module) for module in model.modules()):
        raise UsageError(f"{type(model).__name__} has spiking neurons already: give spiking() the ordinary network")
    if static and steps != 1 and not _is_neuron(neuron()):
        raise UsageError(
            f"neuron makes a {type(neuron()).__name__}, which has no time: give steps=1 (an ordinary network) "
            f"or a neuron with `steps` and `static`"
        )
    root = copy.deepcopy(model)
    graph = trace(root)
    for node in graph.nodes:
        refuse(node, root)
    _Conversion(root, graph, neuron, static).run()
    graph.lint()
    set_steps(root, steps)
    return _SpikingGraph(root, graph, type(model).__name__)


def _is_neuron(module: nn.Module) -> bool:
    return hasattr(module, "steps") and hasattr(module, "static")


class _SpikingGraph(fx.GraphModule):
    """A graph module that keeps all of the root: names, order, containers and what the graph does not use.

    (Stock ones keep only what the graph refers to, and rebuild empty containers: a state dict would lose entries.)
    """

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "SpikingGraph") -> None:
        super().__init__(root, graph, class_name)
        for field in _CONTENTS:
            setattr(self, field, getattr(root, field))

    def _deepcopy_init(self) -> Callable[..., None]:
        return _SpikingGraph.__init__

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, super().__reduce__()[1]


_CONTENTS = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")


def _unpickled(body: dict[str, Any], imports: str) -> _SpikingGraph:
    contents = {field: body[field] for field in _CONTENTS}
    stock: Any = reduce_graph_module(body, imports)
    for field, content in contents.items():
        setattr(stock, field, content)
    return _SpikingGraph(stock, stock.graph, type(stock).__name__)


class Fold(nn.Module):
    """Events `[T, N, ...]` to `[T*N, ...]`; raises `ShapeError` if T is not `steps`."""

    steps = 1

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[0] != self.steps:
            raise ShapeError(
                f"the input has shape {list(x.shape)}, its first axis must be the {self.steps} time steps: integrate "
                f"the events into {self.steps} frames, or call regraft.neurons.set_steps(network, {x.shape[0]})"
            )
        return fold(x)


class Repeat(nn.Module):
    """What is the same at each step, where it meets what is not: `[N, ...]` to `[T*N, ...]`, and sizes N to T*N."""

    steps = 1

    def forward(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return repeat(x, self.steps) if x.dim() else x
        if isinstance(x, int):
            return x * self.steps
        if isinstance(x, torch.Size):
            return torch.Size((x[0] * self.steps, *x[1:]))
        return type(x)(self(part) for part in x) if isinstance(x, tuple | list) else x


class Unfold(nn.Module):
    """`[T*N, ...]` to `[T, N, ...]`."""

    steps = 1

    def forward(self, x: Tensor) -> Tensor:
        return unfold(x, self.steps)


class _Kind(IntEnum):
    """How a value depends on time. Sizes and numbers have a kind too: N is static, T*N is folded."""

    CONSTANT = 0  # parameters, literals: no batch in it
    STATIC = 1  # [N, ...], before any neuron
    FOLDED = 2  # [T*N, ...]


class _Conversion:
    """One walk over the graph in the order of execution; the kind of everything before a node is known at the node."""

    def __init__(self, root: nn.Module, graph: fx.Graph, neuron: Callable[[], nn.Module], static: bool) -> None:
        self.root = root
        self.graph = graph
        self.neuron = neuron
        self.static = static
        self.kinds: dict[fx.Node, _Kind] = {}
        self.taken: set[str] = set()  # paths of ReLU modules whose place a neuron has
        self.helpers: dict[type[nn.Module], str] = {}

    def run(self) -> None:
        sites = {node: relu_site(node, self.root) for node in self.graph.nodes}
        converted = 0
        for node in list(self.graph.nodes):
            if node.op == "placeholder":
                self._enter(node)
            elif node.op == "output":
                self._leave(node)
            elif site := sites[node]:
                converted += self._activate(node, node.all_input_nodes[0], site[1])  # a ReLU before it is gone
            else:
                self._pass(node)
        if not converted:
            raise UsageError(
                f"{type(self.root).__name__} calls no ReLU: spiking() puts a neuron in the place of each ReLU, "
                f"so give it a network with ReLU activations"
            )

    def _enter(self, x: fx.Node) -> None:
        self.kinds[x] = _Kind.STATIC
        if not self.static:
            with self.graph.inserting_after(x):
                folded = self.graph.call_module(self._helper(Fold), (x,))
            x.replace_all_uses_with(folded, delete_user_cb=lambda user: user is not folded)
            self.kinds[folded] = _Kind.FOLDED

    def _leave(self, output: fx.Node) -> None:
        for value in output.all_input_nodes:
            if self.kinds[value] is not _Kind.CONSTANT:
                folded = self._repeated(value, output) if self.kinds[value] is _Kind.STATIC else value
                with self.graph.inserting_before(output):
                    unfolded = self.graph.call_module(self._helper(Unfold), (folded,))
                output.replace_input_with(value, unfolded)

    def _activate(self, node: fx.Node, value: fx.Node, in_place: bool) -> bool:
        """A neuron in the place of a ReLU. After a ReLU in place, its input *is* its output for whoever comes later."""
        if self.kinds[value] is _Kind.CONSTANT:
            with self.graph.inserting_before(node):
                new = self.graph.call_function(torch.relu, (value,))
            self.kinds[new] = _Kind.CONSTANT
        else:
            new = self._neuron(node, value)
        node.replace_all_uses_with(new)
        if in_place:
            self._rewire(value, node, new)
        self.graph.erase_node(node)
        return new.op == "call_module"

    def _neuron(self, node: fx.Node, value: fx.Node) -> fx.Node:
        neuron: Any = self.neuron()
        if _is_neuron(neuron):
            neuron.static = self.kinds[value] is _Kind.STATIC
        path = str(node.target)
        if node.op != "call_module":
            path = unused(self.root, owner(node), "neuron")
        elif path in self.taken:
            parent, _, name = path.rpartition(".")
            path = unused(self.root, parent, name)
        self.taken.add(path)
        place(self.root, path, neuron)
        with self.graph.inserting_before(node):
            new = self.graph.call_module(path, (value,))
        # With static=True a neuron without time (an ordinary ReLU, steps = 1) keeps [N, ...], which is [T*N, ...].
        self.kinds[new] = _Kind.FOLDED
        return new

    def _pass(self, node: fx.Node) -> None:
        """Any other operation: where static meets folded, the static one is repeated."""
        kind = max((self.kinds[value] for value in node.all_input_nodes), default=_Kind.CONSTANT)
        self.kinds[node] = _Kind.CONSTANT if batch_free(node) else kind
        if kind is not _Kind.FOLDED:
            return
        if (size := hard_batch(node)) and self.kinds[node.all_input_nodes[0]] is _Kind.FOLDED:
            raise UsageError(
                f"{where(node, self.root)} has a batch size of {size} written into it, but time is folded into "
                f"the batch: write x.size(0) or -1 in its place"
            )
        changed = node.all_input_nodes[0]
        if self.kinds[changed] is _Kind.STATIC and (pure := out_of_place(node)):
            node.op, node.target = pure
            self._rewire(changed, node, node)
        for value in node.all_input_nodes:
            if self.kinds[value] is _Kind.STATIC:
                node.replace_input_with(value, self._repeated(value, node))

    def _rewire(self, changed: fx.Node, node: fx.Node, result: fx.Node) -> None:
        """`node` changes its input `changed` in place: for everything after it, that value is the `result`."""
        later = set()
        after = node.next
        while after.op != "root":
            later.add(after)
            after.replace_input_with(changed, result)
            after = after.next
        shared = [alias for alias in aliases(changed, self.root) - later if later & set(alias.users)]
        if shared:
            raise UsageError(
                f"{where(node, self.root)} works in place, and {shared[0].name!r}, which shares its memory, is used "
                f"afterwards: give it inplace=False, if that is what the network means"
            )

    def _repeated(self, value: fx.Node, user: fx.Node) -> fx.Node:
        with self.graph.inserting_before(user):
            return self.graph.call_module(self._helper(Repeat), (value,))

    def _helper(self, kind: type[nn.Module]) -> str:
        """The path of this network's one `Fold`, `Repeat` or `Unfold`."""
        if kind not in self.helpers:
            self.helpers[kind] = unused(self.root, "", kind.__name__.lower())
            place(self.root, self.helpers[kind], kind())
        return self.helpers[kind]
