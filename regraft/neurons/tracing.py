"""One graph of an ordinary network, valid in training and in evaluation mode; what cannot be traced is refused."""

from __future__ import annotations

import copy
import inspect
import operator
import traceback
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from regraft.errors import UsageError


class Training(nn.Module):
    """Whether the network is in training mode: a traced `self.training` would be frozen as it was."""

    def forward(self) -> bool:
        return self.training


class _Proxy(fx.Proxy):
    """Keeps `x += y` as what it is, a change in place that other names of x see too; stock proxies compute x + y."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Only the first argument of `forward` is data, the others keep their defaults."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        name, *_ = data_arguments(root_fn)
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]


def data_arguments(forward: Callable[..., Any]) -> list[str]:
    """The names of what an unbound `forward` must be given: its first argument, and those without a default."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    positional = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.KEYWORD_ONLY)]
    return [p.name for i, p in enumerate(positional) if i == 0 or (p.default is p.empty and p.kind != p.VAR_POSITIONAL)]


def trace(root: nn.Module) -> fx.Graph:
    """The graph of `root`, whose `self.training` arguments follow `train()` and `eval()`.

    Adds to `root` what the graph refers to: a `Training` where it is asked for, and constants as non-persistent
    buffers. Containers are looked into, layers of `torch.nn` are not.

    Raises:
        UsageError: if `forward` takes several inputs, depends on data in its control flow, or takes another way in
            training than in evaluation.
    """
    arguments = data_arguments(type(root).forward)
    if len(arguments) != 1:
        raise UsageError(
            f"{type(root).__name__}.forward takes {', '.join(arguments) or 'no input'}: spiking() needs a model of "
            f"one input tensor; wrap it in a module that takes one"
        )
    twin = copy.deepcopy(root)  # tracing can leave constants behind, and both traces must name them alike
    modes = {module: module.training for module in root.modules()}
    graph, other = _traced(root.train()), _traced(twin.eval())
    for module, mode in modes.items():
        module.training = mode
    _follow_mode(root, graph, other)
    for node in graph.nodes:
        node.type = None  # an annotation written as a string could not be pickled
        if node.op == "get_attr" and isinstance(vars(root).get(node.target), Tensor):
            root.register_buffer(node.target, vars(root).pop(node.target), persistent=False)
    return graph


def _traced(root: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(root)
    except Exception as error:  # whatever a forward can raise when it is handed symbols instead of numbers
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
        raise UsageError(
            f"{type(root).__name__} cannot be traced at {frames[-1].filename}:{frames[-1].lineno} "
            f"`{frames[-1].line}` ({error}). Its forward decides by data or shapes: take the decision out of forward, "
            f"or put that part into a function at module level and mark it with torch.fx.wrap"
        ) from error


def _follow_mode(root: nn.Module, graph: fx.Graph, other: fx.Graph) -> None:
    """Replace arguments that are True in training (`graph`) and False in evaluation (`other`) by the mode itself."""
    ours, theirs = list(graph.nodes), list(other.nodes)
    for a, b in zip(ours, theirs, strict=False):
        if (a.op, a.target) != (b.op, b.target):
            raise _two_ways(root, a)
        left, right = (map_arg((n.args, n.kwargs), lambda x: x.name) for n in (a, b))
        if left == right:
            continue
        args = [_mode_or_same(root, a, x, y) for x, y in zip(a.args, b.args, strict=True)]
        a.kwargs = {key: _mode_or_same(root, a, value, b.kwargs[key]) for key, value in a.kwargs.items()}
        a.args = tuple(args)
    if len(ours) != len(theirs):
        raise _two_ways(root, ours[-1])


def _mode_or_same(root: nn.Module, node: fx.Node, training: Any, evaluation: Any) -> Any:
    names = [map_arg(value, lambda x: x.name) for value in (training, evaluation)]
    if names[0] == names[1]:
        return training
    if training is not True or evaluation is not False:
        raise _two_ways(root, node)
    path = unused(root, owner(node), "training_mode")
    place(root, path, Training())
    with node.graph.inserting_before(node):
        return node.graph.call_module(path)


def _two_ways(root: nn.Module, node: fx.Node) -> UsageError:
    return UsageError(
        f"{where(node, root)}: forward takes another way in training than in evaluation, a graph holds only one. "
        f"Give self.training as an argument (F.dropout(x, p, self.training)) instead of branching on it, "
        f"or put the branch into a function at module level marked with torch.fx.wrap"
    )


def owner(node: fx.Node) -> str:
    """The path of the module in whose `forward` the node stands; empty for the root."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if node.op == "call_module" and stack:
        stack.pop()
    return stack[-1][0] if stack else ""


def unused(root: nn.Module, parent: str, name: str) -> str:
    """A path below `parent` that nothing has yet: `name`, or `name_2`, `name_3`, ..."""
    module = root.get_submodule(parent)
    count = 1
    free = name
    while hasattr(module, free):
        count += 1
        free = f"{name}_{count}"
    return f"{parent}.{free}" if parent else free


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path`, in the mode (training or evaluation) of what it becomes a part of."""
    parent, _, name = path.rpartition(".")
    home = root.get_submodule(parent)
    home.add_module(name, module.train(home.training))


def where(node: fx.Node, root: nn.Module) -> str:
    """For a message: which layer or call, and in which module."""
    inside = owner(node)
    place = f"in '{inside}' ({type(root.get_submodule(inside)).__name__})" if inside else f"in {type(root).__name__}"
    if node.op == "call_module":
        return f"layer '{node.target}' ({type(root.get_submodule(str(node.target))).__name__}) {place}"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    return f"the call of {name}() {place}"
