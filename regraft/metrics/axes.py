"""Where the channels of a tensor go when one operation is applied to it: pure rules on shapes, by aten name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from regraft.metrics.observe import first_tensor

Moved = list[tuple[Tensor, int, Tensor]]  # (result, its channel axis, the variables along it)


def _keep(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Any) -> Moved:
    result = first_tensor(out)
    return [(result, axis, ids)] if result is not None and result.dim() == x.dim() else []


def _pad(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Any) -> Moved:
    value = args[2] if len(args) > 2 else kwargs.get("value", 0)
    return _keep(x, axis, ids, args, kwargs, out) if value == 0 else []


def _reshape(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Tensor) -> Moved:
    """The axis may move, or swallow what lies behind it (flatten); one merged with what lies before it is lost."""
    before, behind = x.shape[:axis].numel(), x.shape[axis + 1 :].numel()
    for place in range(out.dim()):
        size = out.shape[place]
        if out.shape[:place].numel() == before and size and size % len(ids) == 0:
            inner = size // len(ids)
            if inner * out.shape[place + 1 :].numel() == behind:
                return [(out, place, ids.repeat_interleave(inner))]
    return []


def _reduce(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Any) -> Moved:
    result = first_tensor(out)
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if result is None or dims is None or dims == []:
        return []
    gone = [d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)]
    if axis in gone:
        return []
    return [(result, axis if result.dim() == x.dim() else axis - sum(d < axis for d in gone), ids)]


def _permute(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Tensor) -> Moved:
    return [(out, [d % x.dim() for d in args[1]].index(axis), ids)]


def _transpose(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Tensor) -> Moved:
    one, other = (args[1] % x.dim(), args[2] % x.dim()) if len(args) > 2 else (0, 1)
    return [(out, {one: other, other: one}.get(axis, axis), ids)]


def _expand(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Tensor) -> Moved:
    return [(out, axis + out.dim() - x.dim(), ids)]


def _select(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Tensor) -> Moved:
    dim = args[1] % x.dim()
    return [] if dim == axis else [(out, axis - (dim < axis), ids)]


def _unbind(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Any) -> Moved:
    dim = (args[1] if len(args) > 1 else 0) % x.dim()
    return [] if dim == axis else [(part, axis - (dim < axis), ids) for part in out]


def _slice(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Tensor) -> Moved:
    dim = args[1] % x.dim() if len(args) > 1 else 0
    start, end, step = (*args[2:], *(None, None, 1)[max(0, len(args) - 2) :])
    return [(out, axis, ids[start:end:step] if dim == axis else ids)]


def _split(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Any) -> Moved:
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
    if dim != axis:
        return [(part, axis, ids) for part in out]
    pieces = ids.split([part.shape[axis] for part in out])
    return [(part, axis, piece) for part, piece in zip(out, pieces, strict=True)]


def _restride(x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Tensor) -> Moved:
    """Average pooling to one pixel ends so, channels last: only axes of length 1 get another stride."""
    return [(out, axis, ids)] if out.squeeze().is_contiguous() else []


_RULES: dict[str, Callable[..., Moved]] = {
    **dict.fromkeys(("clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous", "relu", "relu_"), _keep),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d", "max_pool3d_with_indices", "mkldnn_max_pool2d"), _keep),
    **dict.fromkeys(("avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"), _keep),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest2d"), _keep),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min"), _reduce),
    **{"constant_pad_nd": _pad, "permute": _permute, "transpose": _transpose, "t": _transpose, "expand": _expand},
    "as_strided_": _restride,
    **{"select": _select, "unbind": _unbind, "slice": _slice, "split": _split, "split_with_sizes": _split},
}

_SCALED = {"mul", "div", "mul_", "div_"}  # by a number: a rule of its own, a product of tensors is elementwise

ELEMENTWISE = frozenset(
    {
        *("add", "add_", "sub", "sub_", "rsub", "neg", "where", "maximum", "minimum", "abs", "exp", "pow"),
        *("ge", "gt", "le", "lt", "eq", "ne", "logical_or", "logical_and", "bitwise_or", "bitwise_and"),
        *("clamp", "clamp_min", "clamp_max", "sigmoid", "tanh", "gelu", "silu", "leaky_relu", "hardtanh"),
        *_SCALED,
    }
)


def follow(name: str, x: Tensor, axis: int, ids: Tensor, args: tuple, kwargs: dict, out: Any, alone: bool) -> Moved:
    """Where the channels of `x` are after the aten operation `name`.

    These operations keep a zero channel zero, so the channel stays the same variable. Empty where the channels are
    mixed or not understood. `alone`: `x` is the only tensor that goes in.
    """
    if not alone:
        return []
    rule = _keep if name in _SCALED else _RULES.get(name)
    moved = rule(x, axis, ids, args, kwargs, out) if rule is not None else []
    return [] if any(t.dim() <= a or t.shape[a] != len(i) for t, a, i in moved) else moved
