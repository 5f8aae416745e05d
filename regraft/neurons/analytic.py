"""`multistep` with its backward pass written out: the same spikes and gradients, at less time and memory.

Autograd through the loop keeps about ten tensors a step, and loses the channels-last layout at `torch.stack`, after
which batch normalisation takes a path several times slower. Here the charged membrane is all that is kept, and every
result has the memory order of its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regraft.errors import ShapeError
from regraft.neurons.multistep import Reset
from regraft.neurons.surrogate import Surrogate


def analytic_multistep(
    x: Tensor,
    *,
    decay: float | Tensor,
    threshold: float,
    surrogate: Surrogate,
    reset: Reset = "hard",
    subtract: float | None = None,
    detach_reset: bool = True,
    decay_input: bool = False,
    state: Tensor | None = None,
    repeat: int = 1,
) -> tuple[Tensor, Tensor]:
    """What `multistep` computes; gradients of first order only.

    Args:
        repeat: see a single step `x` `[1, N, ...]` so many times.

    Raises:
        ShapeError: for a `state` that is not `[N, ...]`, and for `repeat` with more than one step.
    """
    if repeat > 1 and len(x) != 1:
        raise ShapeError(f"repeat is {repeat} and the input has {len(x)} steps: only a single step is repeated")
    if state is not None and state.shape != x.shape[1:]:
        raise ShapeError(
            f"the state is {tuple(state.shape)} and one step of the input {tuple(x.shape[1:])}: give equals"
        )
    amount = threshold if subtract is None else subtract
    rest = (threshold, surrogate, None if reset == "hard" else amount, detach_reset, decay_input, repeat)
    return _Multistep.apply(x, state, decay, *rest)  # pyright: ignore[reportReturnType]


class _Multistep(torch.autograd.Function):
    """`amount` is what a soft reset subtracts, None for a hard reset."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        state: Tensor | None,
        decay: float | Tensor,
        threshold: float,
        surrogate: Surrogate,
        amount: float | None,
        detach_reset: bool,
        decay_input: bool,
        repeat: int,
    ) -> tuple[Tensor, Tensor]:
        gain = 1 - decay if decay_input else None
        spikes = _like(x[0], len(x) * repeat)
        v = state
        charged = []
        for t in range(len(spikes)):
            current = x[t if repeat == 1 else 0]
            u = current if gain is None else gain * current
            if v is not None:
                u = (decay * v).add_(u)
            s = torch.ge(u, threshold, out=spikes[t])  # into floats: torch compares much faster than into bools
            v = torch.addcmul(u, u, s, value=-1) if amount is None else torch.sub(u, s, alpha=amount)
            charged.append(u)
        ctx.save_for_backward(x if decay_input else None, state, decay if isinstance(decay, Tensor) else None, *charged)
        ctx.decay, ctx.rest = decay, (threshold, surrogate, amount, detach_reset, decay_input, repeat)
        ctx.set_materialize_grads(False)
        assert v is not None
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_v: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        threshold, surrogate, amount, detach_reset, decay_input, repeat = ctx.rest
        x, state, learnt, *charged = ctx.saved_tensors
        decay = ctx.decay if learnt is None else learnt
        steps = len(charged)
        grads = _like(charged[0], steps // repeat)
        wide = torch.float64 if charged[0].dtype == torch.float64 else torch.float32
        total = None
        if learnt is not None and ctx.needs_input_grad[2]:
            total = torch.zeros((), dtype=wide, device=charged[0].device)
        for t in reversed(range(steps)):
            u = charged[t]
            g = grads[t] if repeat == 1 else grads[0] if t == steps - 1 else torch.empty_like(grads[0])
            onto_spike = None if grad is None else grad[t]
            if grad_v is not None and not detach_reset:  # the reset sees the spike too
                through = -u * grad_v if amount is None else -amount * grad_v
                onto_spike = through if onto_spike is None else onto_spike + through
            if onto_spike is None:
                g.zero_()
            else:
                torch.mul(onto_spike, surrogate.derivative(u - threshold), out=g)
            if grad_v is not None:
                if amount is None:
                    g.addcmul_(grad_v, torch.lt(u, threshold, out=torch.empty_like(u)))
                else:
                    g.add_(grad_v)
            if total is not None:
                before = _after(charged[t - 1], threshold, amount) if t > 0 else state
                if before is not None:
                    total += (g * before).sum(dtype=wide)
                if decay_input:
                    total -= (g * x[t if repeat == 1 else 0]).sum(dtype=wide)
            if t > 0 or state is not None:
                grad_v = decay * g
            if repeat > 1 and t < steps - 1:
                grads[0].add_(g)
        onto_state = grad_v if state is not None else None
        if decay_input:
            grads = (1 - decay) * grads
        return grads, onto_state, total, None, None, None, None, None, None  # autograd gives `total` the decay's type


def _like(step: Tensor, steps: int) -> Tensor:
    """An empty `[T, N, ...]`, each step in the memory order of `step` (channels last stays channels last)."""
    one = torch.empty_like(step)
    return torch.empty_strided((steps, *one.shape), (one.numel(), *one.stride()), dtype=one.dtype, device=one.device)


def _after(u: Tensor, threshold: float, amount: float | None) -> Tensor:
    """The membrane after the reset."""
    s = torch.ge(u, threshold, out=torch.empty_like(u))
    return torch.addcmul(u, u, s, value=-1) if amount is None else torch.sub(u, s, alpha=amount)
