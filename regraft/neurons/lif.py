"""The neurons as modules: LIF, PLIF and IF, on time-folded tensors and without state between calls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regraft.errors import UsageError
from regraft.neurons.analytic import analytic_multistep
from regraft.neurons.fold import fold, unfold
from regraft.neurons.multistep import Reset
from regraft.neurons.surrogate import Surrogate
from regraft.neurons.surrogate import surrogate as _surrogate


class LIF(nn.Module):
    """Leaky integrate-and-fire with a fixed decay.

    Input `[T*N, ...]`, or `[N, ...]` if `static` (the same current at each of the T steps, so whatever lies before
    is computed once). Output: spikes `[T*N, ...]`. The membrane starts at 0 in each call; there is no `reset`.

    Args:
        decay: share of the membrane kept from one step to the next, 0 < decay <= 1; `tau = 1/(1 - decay)`.
        threshold: fires at `u >= threshold`.
        surrogate: a name (`triangle`, `rectangle`, `atan`, `sigmoid`) or an object with `derivative`.
        reset: `hard` (to 0) or `soft` (by subtraction).
        subtract: what a soft reset takes away, at least 0; the threshold unless given.
        detach_reset: no gradient through the reset.
        decay_input: charge with `(1 - decay) * x`, as SpikingJelly does by default.
        steps: T. The model function sets it.
        static: the input is `[N, ...]` and is seen T times. The model function sets it.

    Raises:
        UsageError: for values outside the ranges above, and for `decay_input` with a decay of 1.
    """

    def __init__(
        self,
        decay: float = 0.5,
        *,
        threshold: float = 1.0,
        surrogate: str | Surrogate = "triangle",
        reset: Reset = "hard",
        subtract: float | None = None,
        detach_reset: bool = True,
        decay_input: bool = False,
        steps: int = 1,
        static: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < decay <= 1:
            raise UsageError(f"decay is {decay}: give a number above 0 and at most 1 (1 - 1/tau)")
        if not (math.isfinite(threshold) and threshold > 0):
            raise UsageError(f"threshold is {threshold}: give a finite number above 0")
        if reset not in ("hard", "soft"):
            raise UsageError(f"reset is {reset!r}: give 'hard' or 'soft'")
        if subtract is not None and reset == "hard":
            raise UsageError("subtract is the amount of a soft reset: give reset='soft' with it")
        if subtract is not None and not (math.isfinite(subtract) and subtract >= 0):
            raise UsageError(f"subtract is {subtract}: give a finite number, at least 0")
        if decay == 1 and decay_input:
            raise UsageError("decay_input charges with (1 - decay) * x, so a decay of 1 would silence the neuron")
        if steps < 1:
            raise UsageError(f"steps is {steps}: a spiking neuron needs at least 1 time step")
        self._decay = decay
        self.threshold = threshold
        self.surrogate = _surrogate(surrogate)
        self.reset: Reset = reset
        self.subtract = subtract
        self.detach_reset = detach_reset
        self.decay_input = decay_input
        self.steps = steps
        self.static = static

    @property
    def decay(self) -> float | Tensor:
        """Share of the membrane kept from one step to the next."""
        return self._decay

    def stream(self, x: Tensor, state: Tensor | None = None, *, repeat: int = 1) -> tuple[Tensor, Tensor]:
        """Unfolded input `[T, N, ...]` and the membrane `[N, ...]` -> spikes `[T, N, ...]` and the new membrane.

        With `repeat`, a single step `[1, N, ...]` is seen that often.
        """
        return analytic_multistep(
            x,
            decay=self.decay,
            threshold=self.threshold,
            surrogate=self.surrogate,
            reset=self.reset,
            subtract=self.subtract,
            detach_reset=self.detach_reset,
            decay_input=self.decay_input,
            state=state,
            repeat=repeat,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.static:
            spikes, _ = self.stream(x.unsqueeze(0), repeat=self.steps)
        else:
            spikes, _ = self.stream(unfold(x, self.steps))
        return fold(spikes)

    def extra_repr(self) -> str:
        decay = float(torch.as_tensor(self.decay).detach())
        parts = [f"decay={decay:g}", f"threshold={self.threshold:g}", f"steps={self.steps}", f"{self.surrogate}"]
        parts += ["soft reset"] if self.reset == "soft" else []
        parts += ["decay_input"] if self.decay_input else []
        parts += ["static"] if self.static else []
        return ", ".join(parts)


class IF(LIF):
    """Integrate-and-fire: a `LIF` that forgets nothing (decay 1). Takes no `decay` and refuses `decay_input`."""

    def __init__(
        self,
        *,
        threshold: float = 1.0,
        surrogate: str | Surrogate = "triangle",
        reset: Reset = "hard",
        subtract: float | None = None,
        detach_reset: bool = True,
        decay_input: bool = False,
        steps: int = 1,
        static: bool = False,
    ) -> None:
        if decay_input:
            raise UsageError("IF keeps everything (decay 1), so decay_input would silence its input: use LIF")
        super().__init__(
            1.0,
            threshold=threshold,
            surrogate=surrogate,
            reset=reset,
            subtract=subtract,
            detach_reset=detach_reset,
            steps=steps,
            static=static,
        )


class PLIF(LIF):
    """Parametric LIF: one learnt `w` a layer, `1/tau = sigmoid(w)`, `decay = 1 - 1/tau` (Fang et al. 2021).

    `w` has no axis, so structure learning never touches it; leave it out of weight decay too (`fit` does).
    `tau` (> 1) sets the start: `w = -ln(tau - 1)`. `decay_input` defaults to True, as published.
    """

    def __init__(
        self,
        tau: float = 2.0,
        *,
        threshold: float = 1.0,
        surrogate: str | Surrogate = "triangle",
        reset: Reset = "hard",
        subtract: float | None = None,
        detach_reset: bool = True,
        decay_input: bool = True,
        steps: int = 1,
        static: bool = False,
    ) -> None:
        if not (math.isfinite(tau) and tau > 1):
            raise UsageError(f"tau is {tau}: give a finite number above 1")
        super().__init__(
            1 - 1 / tau,
            threshold=threshold,
            surrogate=surrogate,
            reset=reset,
            subtract=subtract,
            detach_reset=detach_reset,
            decay_input=decay_input,
            steps=steps,
            static=static,
        )
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    @property
    def decay(self) -> Tensor:
        """`1 - sigmoid(w)`, a 0-dim tensor."""
        return 1 - torch.sigmoid(self.w)
