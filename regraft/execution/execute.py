"""`execute`: a network takes its faster paths, on this instance only, and can be given back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import UsageError
from regraft.execution import native
from regraft.execution.fire import fire_of
from regraft.execution.fused import segment as fused_segment
from regraft.execution.plan import Program, Segment, plan


def execute(model: nn.Module) -> Execution:
    """Let a spiking network compute faster: normalisation, neuron and 2x2 pooling in one pass over all time steps.

    Replaces `forward` on the instances of its containers; classes, names, parameters, `state_dict`, hooks and copies
    stay what they are. Where a fast path cannot serve (other types, hooks on a layer inside, no kernels) the layers
    are called as before. Gradients are of first order only. Call it once the network is built: layers that are put in
    afterwards are not seen.

    >>> from regraft.models import tiny_vgg
    >>> net = tiny_vgg()
    >>> execution = regraft.execute(net)
    >>> net(torch.rand(5, 1, 8, 8)).shape
    torch.Size([4, 5, 10])
    >>> execution.detach()

    Raises:
        UsageError: for a model that is executed already.
    """
    if any(isinstance(vars(module).get("forward"), _Forward) for module in model.modules()):
        raise UsageError(f"{type(model).__name__} is executed already: call .detach() of the first execution before")
    execution = Execution()
    for module, program in plan(model):
        forward = _Forward(module, program)
        object.__setattr__(module, "forward", forward)
        execution.forwards.append(forward)
    return execution


@dataclass
class Execution:
    """What `execute` has replaced. Its text is a table of the segments and how each is computed."""

    forwards: list[_Forward] = field(default_factory=list)

    @property
    def segments(self) -> list[Segment]:
        return [segment for forward in self.forwards for segment in forward.program.segments]

    def detach(self) -> None:
        """Give every module its own `forward` back."""
        for forward in self.forwards:
            vars(forward.module).pop("forward", None)
        self.forwards.clear()

    def __str__(self) -> str:
        lines = []
        for segment in self.segments:
            names = " + ".join("norm" if norm is not None else "input" for norm in segment.norms)
            pool = " -> pool" if segment.pool is not None else ""
            lines.append(f"{names} -> {type(segment.neuron).__name__}{pool}: {why_not(segment) or 'fused'}")
        return "\n".join(lines) or "no neuron of regraft was found"


class _Forward:
    """A module's program in the place of its `forward`."""

    def __init__(self, module: nn.Module, program: Program) -> None:
        self.module, self.program = module, program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bypassed = any(_hooked(container) for container in self.program.containers)
        if kwargs or len(args) != 1 or bypassed or torch.compiler.is_compiling():
            return type(self.module).forward(self.module, *args, **kwargs)
        return self.program.run(args[0], run_segment)


def run_segment(segment: Segment, *inputs: Tensor) -> Tensor:
    """The segment's spikes, fused where that can be."""
    if why_not(segment) or _unfit(segment, inputs):
        return segment.plain(*inputs)
    how = fire_of(segment.neuron)
    assert how is not None
    pool = segment.pool is not None and _can_pool(inputs[0])
    spikes = fused_segment(how, segment.neuron.decay, inputs, segment.norms, pool)
    return spikes if pool or segment.pool is None else segment.pool(spikes)


def why_not(segment: Segment) -> str | None:
    """Why a segment's modules are called one by one; None if they need not."""
    if not native.available():
        return "plain: the kernels were not built"
    if hooked := next((m for m in segment.modules if _hooked(m)), None):
        return f"plain: a hook looks at the {type(hooked).__name__}"
    if fire_of(segment.neuron) is None:
        return f"plain: surrogate {segment.neuron.surrogate} is not one of regraft's"
    return None


def _unfit(segment: Segment, inputs: tuple[Tensor, ...]) -> bool:
    """Whether these inputs need the plain path, be it for its errors."""
    y, neuron = inputs[0], segment.neuron
    steps = 1 if neuron.static else neuron.steps
    if not all(isinstance(x, Tensor) and x.device.type == "cpu" and x.layout == torch.strided for x in inputs):
        return True
    if y.dim() < 2 or y.numel() == 0 or len(y) % steps or y.dtype not in native.TYPES:
        return True
    if any(x.shape != y.shape or x.dtype != y.dtype for x in inputs[1:]):
        return True
    return any(_unfit_norm(norm, y) for norm in segment.norms if norm is not None)


def _unfit_norm(norm: nn.Module, y: Tensor) -> bool:
    dims = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}[type(norm)]  # pyright: ignore
    if y.dim() not in dims or y.shape[1] != norm.num_features:
        return True
    if norm.training and y.numel() == y.shape[1]:  # one value a channel: torch refuses it
        return True
    numbers = [t for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if isinstance(t, Tensor)]
    return any(t.dtype != native.real(y) or not t.is_contiguous() for t in numbers)


def _can_pool(y: Tensor) -> bool:
    return y.dim() == 4 and native.channels_last(native.laid_out(y)) and y.shape[2] % 2 == 0 and y.shape[3] % 2 == 0


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
