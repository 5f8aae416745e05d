"""The reference recursion: leaky integrate-and-fire over all time steps, as a pure function.

Everything faster is tested against this function. Time is the first axis and is not folded here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regraft.errors import ShapeError
from regraft.neurons.surrogate import Surrogate, spike

Reset = Literal["hard", "soft"]


def multistep(
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
) -> tuple[Tensor, Tensor]:
    """Charge, fire and reset for each of the T steps.

        u[t] = decay * v[t-1] + gain * x[t]          gain = 1 - decay if decay_input else 1
        s[t] = 1 if u[t] >= threshold else 0
        v[t] = u[t] * (1 - s[t])                     hard reset to 0
             = u[t] - subtract * s[t]                soft reset; subtract is the threshold unless given

    Args:
        x: input current, `[T, N, ...]`.
        decay: in (0, 1]; a 0-dim tensor where it is learnt.
        state: `v[-1]`, `[N, ...]`; zeros if not given.

    Returns:
        The spikes `[T, N, ...]` in the dtype of `x`, and `v[T-1]` `[N, ...]` to hand in again when streaming.

    Raises:
        ShapeError: for a `state` that is not `[N, ...]`; broadcasting one would hide a mistake.
    """
    if state is not None and state.shape != x.shape[1:]:
        raise ShapeError(
            f"the state is {tuple(state.shape)} and one step of the input {tuple(x.shape[1:])}: give equals"
        )
    v = torch.zeros_like(x[0]) if state is None else state
    gain = 1 - decay if decay_input else None
    amount = threshold if subtract is None else subtract
    spikes = []
    for current in x:
        u = decay * v + (current if gain is None else gain * current)
        s = spike(u - threshold, surrogate)
        fired = s.detach() if detach_reset else s
        v = u * (1 - fired) if reset == "hard" else u - amount * fired
        spikes.append(s)
    return torch.stack(spikes), v
