"""`execute`: a network takes its faster paths, on this instance only, and can be given back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.execution.calibration import Calibration, shipped
from regraft.execution.engines import engine
from regraft.execution.fire import fire_of
from regraft.execution.fused import BatchNorm
from regraft.execution.fused import segment as fused_segment
from regraft.execution.hooks import Replaced, hooked, looked_at, original
from regraft.execution.paths import Paths, all_out
from regraft.execution.plan import Call, Program, Segment, plan
from regraft.execution.wiring import Wiring
from regraft.structure import Topology


def execute(model: nn.Module, topology: Topology | None = None, calibration: Calibration | None = None) -> Execution:
    """Let a spiking network compute faster: normalisation, neuron and 2x2 pooling in one pass over all time steps.

    With a `topology`, layers that are sparse enough go over their existing connections alone, and what lies
    between them works on spikes as sets of 16 images. Products are then in float32, under autocast too. It follows the
    wiring from event to event, and delivers the gradients of absent connections when growth asks for them. What is
    sparse enough, `calibration` says: a table measured on this kind of processor, unless another is given.

    Replaces `forward` on the instances of its containers; classes, names, parameters, `state_dict`, hooks and copies
    stay what they are. Where a fast path cannot serve (other types, hooks on a layer inside, no kernels) the layers
    are called as before. Gradients are of first order only. Layers put in afterwards are seen once it is called again.

    >>> from regraft.models import tiny_vgg
    >>> net = tiny_vgg()
    >>> execution = regraft.execute(net)
    >>> net(torch.rand(5, 1, 8, 8)).shape
    torch.Size([4, 5, 10])
    >>> execution.detach()
    """
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _Forward):
            del module.forward
    execution = Execution(calibration or shipped())
    names = {} if topology is None else {id(p): name for name, p in topology.model.named_parameters()}
    if topology is not None:
        execution.wired = list(topology.masks)
    wired = {of for of, name in names.items() if name in execution.wired}
    for module, program in list(plan(model, wired)):  # all of them planned before any is replaced
        paths = None
        if topology is not None:
            paths = Paths(program, names, Wiring(topology), execution.calibration)
            execution.paths.append(paths)
        forward = _Forward(module, program, paths if paths is not None and paths.possible else None)
        object.__setattr__(module, "forward", forward)
        execution.forwards.append(forward)
    return execution


@dataclass
class Execution:
    """What `execute` has replaced. Its text is a table of the segments and wired layers, and how each is computed."""

    calibration: Calibration
    forwards: list[_Forward] = field(default_factory=list)
    paths: list[Paths] = field(default_factory=list)
    wired: list[str] = field(default_factory=list)

    @property
    def segments(self) -> list[Segment]:
        return [segment for forward in self.forwards for segment in forward.program.segments]

    @property
    def choices(self) -> dict[str, str]:
        """For each parameter of the topology, why its layer is computed densely, as of the last forward pass; empty
        where it goes over its existing connections."""
        found = dict.fromkeys(self.wired, "what calls it cannot be taken apart")
        for paths in self.paths:
            found |= paths.choices
        return found

    def use(self, calibration: Calibration) -> None:
        """Let another table decide from now on."""
        self.calibration = calibration
        for paths in self.paths:
            paths.calibration = calibration

    def detach(self) -> None:
        """Give every module its own `forward` back."""
        for forward in self.forwards:
            if vars(forward.module).get("forward") is forward:
                del forward.module.forward
        self.forwards, self.paths, self.wired = [], [], []

    def __str__(self) -> str:
        lines = []
        for segment in self.segments:
            names = " + ".join("norm" if norm is not None else "input" for norm in segment.norms)
            pool = " -> pool" if segment.pool is not None else ""
            lines.append(f"{names} -> {type(segment.neuron).__name__}{pool}: {why_not(segment) or self._path}")
        lines += [f"{name}: {f'dense: {why}' if why else 'over connections'}" for name, why in self.choices.items()]
        return "\n".join(lines) or "no neuron of regraft was found"

    @property
    def _path(self) -> str:
        devices = {p.device.type for forward in self.forwards for p in forward.module.parameters()} or {"cpu"}
        lacking = [device for device in devices if engine(device) is None]
        return f"plain: no kernels for {', '.join(lacking)}" if lacking else "fused"


class _Forward(Replaced):
    """A module's program in the place of its `forward`."""

    def __init__(self, module: nn.Module, program: Program, paths: Paths | None) -> None:
        self.module, self.program, self.paths = module, program, paths

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bypassed = looked_at() or any(hooked(container) for container in self.program.containers)
        symbolic = torch.compiler.is_compiling() or not all(isinstance(x, Tensor) for x in args)
        if kwargs or len(args) != 1 or bypassed or symbolic:
            return type(self.module).forward(self.module, *args, **kwargs)
        return all_out(self.program.run(args[0], self._call))

    def _call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.paths is not None:
            return self.paths.call(call, args, kwargs, run_segment)
        if isinstance(call.what, Segment):
            return run_segment(call.what, *args)
        return original(call.what)(*args, **kwargs)


def run_segment(segment: Segment, *inputs: Tensor) -> Tensor:
    """The segment's spikes, fused where that can be."""
    kernels = engine(inputs[0].device.type)
    if kernels is None or why_not(segment) or _unfit(segment, inputs, kernels):
        # In half precision the fast path rounds only what it stores; so does this one.
        kind = inputs[0].dtype
        half = kind in (torch.bfloat16, torch.float16)
        if not half or any(t.dtype == kind for norm in segment.norms if norm is not None for t in _numbers(norm)):
            return segment.plain(*inputs)
        return segment.plain(*(y.float() for y in inputs)).to(kind)
    how = fire_of(segment.neuron)
    assert how is not None
    pool = segment.pool is not None and _can_pool(inputs[0], kernels)
    spikes = fused_segment(how, segment.neuron.decay, inputs, segment.norms, pool)
    return spikes if pool or segment.pool is None else segment.pool(spikes)


def why_not(segment: Segment) -> str | None:
    """What of a segment's modules asks for them to be called one by one; None if nothing does."""
    if seen := next((m for m in segment.modules if hooked(m)), None):
        return f"plain: a hook looks at the {type(seen).__name__}"
    if fire_of(segment.neuron) is None:
        return f"plain: surrogate {segment.neuron.surrogate} is not one of regraft's"
    return None


def _unfit(segment: Segment, inputs: tuple[Tensor, ...], kernels: Any) -> bool:
    """Whether these inputs need the plain path, be it for its errors."""
    y, neuron = inputs[0], segment.neuron
    steps = 1 if neuron.static else neuron.steps
    if any(type(x) not in (Tensor, nn.Parameter) for x in inputs):  # their memory is not theirs: fake, distributed
        return True
    if any(x.layout != torch.strided or x.device != y.device for x in inputs):
        return True
    if y.dim() < 2 or y.numel() == 0 or len(y) % steps or y.dtype not in kernels.TYPES:
        return True
    if any(x.shape != y.shape or x.dtype != y.dtype for x in inputs[1:]):
        return True
    return any(_unfit_norm(norm, y, kernels) for norm in segment.norms if norm is not None)


def _unfit_norm(norm: BatchNorm, y: Tensor, kernels: Any) -> bool:
    dims = (2, 3) if isinstance(norm, nn.BatchNorm1d) else (4,) if isinstance(norm, nn.BatchNorm2d) else (5,)
    if y.dim() not in dims or y.shape[1] != norm.num_features:
        return True
    if (norm.running_mean is None) != (norm.running_var is None):
        return True
    batch = norm.training or norm.running_mean is None
    if batch and y.numel() == y.shape[1]:  # one value a channel: torch refuses it
        return True
    fit = (y.shape[1:2], y.device, kernels.real(y))
    return any((t.shape, t.device, t.dtype) != fit or not t.is_contiguous() for t in _numbers(norm))


def _numbers(norm: BatchNorm) -> list[Tensor]:
    """What it has for each channel."""
    return [t for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if isinstance(t, Tensor)]


def _can_pool(y: Tensor, kernels: Any) -> bool:
    return y.dim() == 4 and kernels.channels_last(kernels.laid_out(y)) and y.shape[2] % 2 == 0 and y.shape[3] % 2 == 0
