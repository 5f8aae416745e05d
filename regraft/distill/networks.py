"""The teachers with a network: a trained one, the student's average, its past, its own stronger half.

The first three teach by a deep copy, made when the teacher is: nothing that happens to the original later reaches it.
Make them after the model is on its device and before it is wrapped (DDP, compile).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from regraft.distill.losses import Over, cross_entropy, over_time, softened_kl
from regraft.errors import RunError, ShapeError, UsageError

Forward = Callable[[nn.Module, Any], Tensor]
Masks = Mapping[str, Tensor]


class NetworkTeacher:
    """Any trained network: sparser than the student, undertrained, a saved run, the ANN twin.

    It is copied, in eval mode at each call, without graph or gradient, and never changes: parameters and statistics
    stay the same to the bit. Its logits may be `[N, K]` or have another T than the student's, see `softened_kl`.

    Args:
        model: `[N, ...]` or `[T, N, ...]` -> logits. On the device of the inputs.
        forward: `forward(model, inputs) -> logits` for a model that needs more than a call, for example a reset of
            its state first.

    Raises:
        UsageError: if the model cannot be copied; when called without `inputs`.
        ShapeError: for logits whose N or K are not the student's.
    """

    updates = "never"

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        self.model = _frozen_copy(model)
        self.forward = forward

    def loss(self, logits: Tensor, targets: Tensor, *, inputs: Any, temperature: float, over: Over) -> Tensor:
        taught = _quietly(self, self.model, self.forward, inputs)
        return softened_kl(logits, taught, temperature=temperature, over=over)

    def update(self, model: nn.Module, step: int) -> None:
        """Nothing: this teacher is fixed."""

    def __repr__(self) -> str:
        return f"NetworkTeacher({type(self.model).__name__})"


class AverageTeacher:
    """An exponential moving average of the student (Tarvainen and Valpola 2017); changes only in `update`.

        average = decay * average + (1 - decay) * student            starting from the student as handed in

    Parameters and floating buffers (the statistics of normalisation) are averaged, integer buffers are copied. A
    connection that never existed stays exactly 0; one that was dropped fades, so the average is denser than the
    student. Otherwise as `NetworkTeacher`.

    Raises:
        UsageError: for a decay outside [0, 1]; an `update` with a model of other names.
    """

    updates = "step"

    def __init__(self, model: nn.Module, decay: float = 0.999, forward: Forward | None = None) -> None:
        if not 0 <= decay <= 1:
            raise UsageError(f"decay is {decay}: give a number from 0 (the student itself) to 1 (never moves)")
        self.model = _frozen_copy(model)
        self.decay = decay
        self.forward = forward

    def loss(self, logits: Tensor, targets: Tensor, *, inputs: Any, temperature: float, over: Over) -> Tensor:
        taught = _quietly(self, self.model, self.forward, inputs)
        return softened_kl(logits, taught, temperature=temperature, over=over)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the student; to be called once after each optimiser step."""
        for average, value in _pairs(self.model, model):
            if average.is_floating_point():
                average.lerp_(value.to(average), 1 - self.decay)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The average's parameters and buffers by name."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore; raises `RunError` if the state is of another model."""
        _restore(self.model, state)

    def __repr__(self) -> str:
        return f"AverageTeacher({type(self.model).__name__}, decay={self.decay:g})"


class PreviousTeacher:
    """The student as it was just before its last rewiring event: a whole snapshot, dropped connections included.

    `update` takes the snapshot; it is due just before each event: `topology.before_event(teacher.update)`, or the
    `before_event` of a `Distill`. Before the first event there is no teacher, and the loss is the label loss alone.
    Otherwise as `NetworkTeacher`.

    Raises:
        UsageError: for an `update` with a model of other names.
    """

    updates = "event"

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        self.model = _frozen_copy(model)
        self.forward = forward
        self.ready = False
        """Whether an event has been seen."""

    def loss(self, logits: Tensor, targets: Tensor, *, inputs: Any, temperature: float, over: Over) -> Tensor | None:
        if not self.ready:
            return None
        taught = _quietly(self, self.model, self.forward, inputs)
        return softened_kl(logits, taught, temperature=temperature, over=over)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Become the student as it is now."""
        for kept, value in _pairs(self.model, model):
            kept.copy_(value)
        self.ready = True

    def state_dict(self) -> dict[str, Tensor]:
        """The snapshot's parameters and buffers by name; empty before the first event."""
        return self.model.state_dict() if self.ready else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore; raises `RunError` if the state is of another model."""
        if state:
            _restore(self.model, state)
        self.ready = bool(state)

    def __repr__(self) -> str:
        return f"PreviousTeacher({type(self.model).__name__}{'' if self.ready else ', no event yet'})"


class NestedTeacher:
    """One more forward pass, by the strongest share `keep` of the connections of each layer; both learn.

    With `z` the logits of the whole, `h` those of the half and `[ ]` for detached, the part that `weight` multiplies is

        D = CE(h, y) + temperature^2 * ( KL([h] || z) + KL([z] || h) )        (both softened)

    so `L = (1 - weight) CE(z, y) + weight D`; at weight 0.5 whole and half count the same. The half is always taught
    by `cross_entropy`, whatever the `label_loss` of the whole. One set of weights thus serves several densities.

    The half is chosen anew at each call: per layer the `floor(keep * k + 1/2)` largest `abs(w)` of its `k` existing
    connections, ties to the lower index. Through this pass gradients flow only to what was kept; at all others they
    are exactly 0. Statistics of normalisation are computed in the student's mode and their updates thrown away.

    Args:
        model: the student itself, not a copy; not wrapped (DDP, compile).
        keep: share of the existing connections, 0 < keep < 1.
        masks: which connections exist, name of the parameter -> bool tensor, or a callable that returns them:
            `lambda: topology.masks`. Without: `w != 0` in all Linear and Conv weights. Other parameters stay whole.
        forward: as in `NetworkTeacher`, for a student that needs more than a call.

    Raises:
        UsageError: for a `keep` outside (0, 1); a mask of a parameter that is not there; when called without `inputs`.
        ShapeError: for a mask that is not shaped like its parameter.
    """

    updates = "never"

    def __init__(
        self,
        model: nn.Module,
        keep: float = 0.5,
        masks: Masks | Callable[[], Masks] | None = None,
        forward: Forward | None = None,
    ) -> None:
        if not 0 < keep < 1:
            raise UsageError(f"keep is {keep}: give a share above 0 and below 1")
        self.model = model
        self.keep = keep
        self.masks = masks
        self.forward = forward

    def loss(self, logits: Tensor, targets: Tensor, *, inputs: Any, temperature: float, over: Over) -> Tensor:
        _need_inputs(self, inputs)
        half = self.logits(inputs)
        to_whole = softened_kl(logits, half, temperature=temperature, over=over)
        to_half = softened_kl(half, logits, temperature=temperature, over=over)
        return cross_entropy(over_time(half, over), targets) + to_whole + to_half

    def logits(self, inputs: Any) -> Tensor:
        """The half's logits, with their graph; shaped like the student's."""
        kept = self.kept()
        weights = {name: weight * kept[name] for name, weight in self.model.named_parameters() if name in kept}
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        tensors = {f"model.{name}": tensor for name, tensor in (weights | buffers).items()}
        return functional_call(_Call(self.model, self.forward), tensors, (inputs,))

    def kept(self) -> dict[str, Tensor]:
        """What the half consists of now: name -> bool mask, shaped like the parameter."""
        parameters = dict(self.model.named_parameters())
        return {name: strongest(parameters[name], mask, self.keep) for name, mask in self._existing(parameters).items()}

    def update(self, model: nn.Module, step: int) -> None:
        """Nothing: this teacher is the student."""

    def _existing(self, parameters: dict[str, nn.Parameter]) -> Masks:
        if self.masks is None:
            prunable = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Linear | _ConvNd)}
            return {name: p.detach() != 0 for name, p in parameters.items() if id(p) in prunable}
        masks = self.masks() if callable(self.masks) else self.masks
        for name, mask in masks.items():
            if name not in parameters:
                raise UsageError(f"there is a mask for {name!r}, but {type(self.model).__name__} has no such parameter")
            if mask.shape != parameters[name].shape:
                shape = list(parameters[name].shape)
                raise ShapeError(f"the mask {list(mask.shape)} of {name!r} does not fit its parameter {shape}")
        return masks

    def __repr__(self) -> str:
        return f"NestedTeacher({type(self.model).__name__}, keep={self.keep:g})"


def strongest(weight: Tensor, existing: Tensor, keep: float) -> Tensor:
    """Bool mask of exactly `floor(keep * k + 1/2)` of the `k` existing connections: largest `abs(w)`, ties by index.

    >>> strongest(torch.tensor([0.5, -2.0, 0.5, 9.0]), torch.tensor([True, True, True, False]), 0.5)
    tensor([ True,  True, False, False])
    """
    magnitude = weight.detach().abs().masked_fill(~existing, -1).flatten()
    count = math.floor(keep * int(existing.sum()) + 0.5)
    if count == 0:
        return torch.zeros_like(existing)
    # `topk` is right about values only: which of several equal weights it picks differs between devices.
    least = magnitude.topk(count, sorted=False).values.min()
    above, tied = magnitude > least, magnitude == least
    return (above | (tied & (tied.cumsum(0) <= count - above.sum()))).view_as(existing)


class _Call(nn.Module):
    """Gives `functional_call` one module to call where the student is run by a function."""

    def __init__(self, model: nn.Module, run: Forward | None) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, inputs: Any) -> Tensor:
        return self.model(inputs) if self.run is None else self.run(self.model, inputs)


def _need_inputs(teacher: object, inputs: Any) -> None:
    """Raise `UsageError` if a teacher that runs a network was given nothing to run it on."""
    if inputs is None:
        raise UsageError(
            f"{type(teacher).__name__} runs a network and must see what the student saw: "
            f"criterion(logits, targets, inputs=x)"
        )


def _quietly(teacher: object, model: nn.Module, forward: Forward | None, inputs: Any) -> Tensor:
    """The teacher's logits, in eval mode whatever was done to it meanwhile, without a graph."""
    _need_inputs(teacher, inputs)
    model.eval()
    with torch.no_grad():
        taught = model(inputs) if forward is None else forward(model, inputs)
    return taught.detach()


def _frozen_copy(model: nn.Module) -> nn.Module:
    try:
        twin = copy.deepcopy(model)
    except RuntimeError as error:  # a membrane with a graph, left over from a forward pass
        raise UsageError(
            f"{type(model).__name__} cannot be copied to teach ({error}): reset its state, or copy it before it runs"
        ) from error
    return twin.eval().requires_grad_(False)


def _pairs(teacher: nn.Module, student: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of both by name, each shared one once (by `state_dict` it would be averaged once a name)."""
    mine, theirs = (dict(m.named_parameters()) | dict(m.named_buffers()) for m in (teacher, student))
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())[0]
        raise UsageError(
            f"the teacher was made of another model than it is updated with: only one of them has {odd!r}; "
            f"hand in the model itself, not a wrapper of it (DDP, compile)"
        )
    return ((mine[name], theirs[name]) for name in mine)


def _restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(f"the saved teacher is of another model: {error}") from error
