"""What a traced network does at a node: a ReLU, an activation that no neuron stands for, a size, a change in place."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from regraft.errors import UsageError
from regraft.neurons.tracing import where


def _functions(*names: str) -> set[Callable[..., Any]]:
    """Those functions of torch and torch.nn.functional that exist, with their in-place forms."""
    found = (getattr(home, name + end, None) for home in (torch, F) for name in names for end in ("", "_"))
    return {function for function in found if callable(function)}


_RELU = _functions("relu", "relu6")
_CLAMP = _functions("clamp", "clip", "clamp_min")
_GATE_FUNCTIONS = _functions("sigmoid", "hardsigmoid")
_GATES = (nn.Sigmoid, nn.Hardsigmoid)

_OTHER = (
    nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.PReLU, nn.RReLU, nn.Softplus,
    nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Hardtanh, nn.Tanh, nn.LogSigmoid, nn.Threshold, nn.GLU,
)  # fmt: skip
_OTHER_FUNCTIONS = _functions(
    "gelu", "silu", "hardswish", "leaky_relu", "elu", "celu", "selu", "mish", "prelu", "rrelu", "softplus",
    "softsign", "softshrink", "hardshrink", "tanhshrink", "hardtanh", "tanh", "logsigmoid", "threshold", "glu",
)  # fmt: skip
_OTHER_METHODS = {"tanh", "tanh_", "prelu", "hardshrink"}
_CLOSED = (
    nn.RNNBase, nn.RNNCellBase, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip

_MULTIPLY = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_AUGMENTED = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

_RESHAPES = {torch.reshape, "view", "reshape"}
_VIEWS = _RESHAPES | {
    torch.flatten, torch.unflatten, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.chunk,
    torch.split, torch.unbind, torch.movedim, operator.getitem, F.dropout, F.dropout2d, "flatten", "unflatten",
    "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split", "unbind", "movedim", "expand", "contiguous",
    "detach", "to", "narrow", "select",
}  # fmt: skip
_VIEW_LAYERS = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def relu_site(node: fx.Node, root: nn.Module) -> tuple[fx.Node, bool] | None:
    """The input of the ReLU that the node calls, and whether it works in place; None if it calls none."""
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        if not isinstance(layer, nn.ReLU | nn.ReLU6):
            return None
        return node.all_input_nodes[0], layer.inplace
    if node.op not in ("call_function", "call_method"):
        return None
    name = _name(node)
    if node.target in _CLAMP or node.target in {"clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"}:
        low = _argument(node, 1, "min")
        if isinstance(low, fx.Node) or low != 0 or _argument(node, 2, "max") is not None:
            return None
    elif not (node.target in _RELU or node.target in {"relu", "relu_"}):
        return None
    in_place = name.endswith("_") or _argument(node, 1, "inplace") is True
    return node.all_input_nodes[0], in_place


def refuse(node: fx.Node, root: nn.Module) -> None:
    """Raise `UsageError` if the node is an activation that is no ReLU, or a layer with one or with a time inside."""
    layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    if relu_site(node, root):
        if _is_relu6(node, layer) and _adds_three(node.all_input_nodes[0]):
            raise UsageError(
                f"{where(node, root)} is relu6(x + 3), a hard sigmoid written by hand: "
                f"write nn.Hardsigmoid() for a gate, or nn.ReLU() for an activation (in the place of a hard swish)"
            )
    elif isinstance(layer, _OTHER):
        kind = type(layer).__name__
        raise UsageError(
            f"{where(node, root)} is not a ReLU, and a neuron stands only for a ReLU. Replace it before conversion:  "
            f"for name, m in list(model.named_modules()): isinstance(m, nn.{kind}) and "
            f"model.set_submodule(name, nn.ReLU())"
        )
    elif layer is not None and (closed := next((m for m in layer.modules() if isinstance(m, _CLOSED)), None)):
        raise UsageError(
            f"{where(node, root)}: a {type(closed).__name__} cannot be looked into (it has a time or an activation of "
            f"its own): convert the convolutional part alone"
        )
    elif node.target in _OTHER_FUNCTIONS or (node.op == "call_method" and node.target in _OTHER_METHODS):
        raise UsageError(
            f"{where(node, root)} is not a ReLU, and a neuron stands only for a ReLU: call F.relu there instead"
        )
    elif node.target in _MULTIPLY and any(_gates_itself(node, value, root) for value in node.all_input_nodes):
        raise UsageError(
            f"{where(node, root)} computes x * sigmoid(x), a SiLU or hard swish written by hand: call F.relu(x) instead"
        )


def batch_free(node: fx.Node) -> bool:
    """Whether the node asks a tensor for something without the batch in it: `x.size(1)`, `x.shape[2:]`, `x.device`."""
    if node.op == "call_method":
        size = node.target == "size" and _argument(node, 1, "dim") not in (None, 0)
        return size or node.target in ("dim", "ndimension", "get_device")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("ndim", "dtype", "device", "is_cuda", "requires_grad", "layout")
    if node.target is not operator.getitem or not _is_whole_size(node.args[0]):
        return False
    index: Any = node.args[1]
    return index.start not in (None, 0) if isinstance(index, slice) else index != 0


def hard_batch(node: fx.Node) -> int | None:
    """The number that a view or reshape has in the place of the batch; None if there is none."""
    if node.target not in _RESHAPES:
        return None
    shape = node.kwargs.get("shape", node.kwargs.get("size", node.args[1:]))
    while isinstance(shape, tuple | list) and shape:
        shape = shape[0]
    return shape if isinstance(shape, int) and shape > 0 else None


def out_of_place(node: fx.Node) -> tuple[str, Any] | None:
    """The same operation without the change in place, as `(op, target)`; None if the node changes nothing."""
    target: Any = node.target
    if target in _AUGMENTED:
        return "call_function", _AUGMENTED[target]
    if node.op == "call_method" and target.endswith("_") and not target.endswith("__"):
        return "call_method", target[:-1]
    return None


def aliases(value: fx.Node, root: nn.Module) -> set[fx.Node]:
    """Every other node that may share memory with `value`, by views in either direction."""
    found, waiting = {value}, [value]
    while waiting:
        node = waiting.pop()
        near = [user for user in node.users if _may_share(user, root) and user.all_input_nodes[0] is node]
        near += node.all_input_nodes[:1] if _may_share(node, root) else []
        waiting += [other for other in near if other not in found]
        found.update(near)
    return found - {value}


def _may_share(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), _VIEW_LAYERS)
    return node.target in _VIEWS and not _is_whole_size(node.all_input_nodes[0] if node.all_input_nodes else None)


def _is_whole_size(node: Any) -> bool:
    """Whether a node is `x.shape` or `x.size()`."""
    if not isinstance(node, fx.Node):
        return False
    by_method = node.op == "call_method" and node.target == "size" and _argument(node, 1, "dim") is None
    return by_method or (node.target is getattr and "shape" in node.args)


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _is_relu6(node: fx.Node, layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.ReLU6) or node.target is F.relu6


def _adds_three(node: fx.Node) -> bool:
    return node.target in _ADD and 3 in node.args


def _gates_itself(product: fx.Node, gate: fx.Node, root: nn.Module) -> bool:
    """Whether `gate` is a sigmoid of another factor of `product`."""
    if gate.op == "call_module":
        sigmoid = isinstance(root.get_submodule(str(gate.target)), _GATES)
    else:
        sigmoid = gate.target in _GATE_FUNCTIONS or gate.target in ("sigmoid", "sigmoid_")
    return sigmoid and gate.all_input_nodes[0] in product.all_input_nodes
