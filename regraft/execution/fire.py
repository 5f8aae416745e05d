"""A neuron as plain data, for engines that know no modules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.neurons import LIF
from regraft.neurons.surrogate import Atan, Rectangle, Sigmoid, Triangle


@dataclass(frozen=True)
class Fire:
    """What a neuron does with its input over all steps, but for its decay, which may be learnt.

    Args:
        steps: T.
        repeat: the input has one step and is seen T times.
        surrogate: `triangle`, `rectangle`, `atan` or `sigmoid`.
        shape: the surrogate's width or sharpness.
        amount: what a soft reset subtracts; None for a hard reset to 0.
        detach_reset: no gradient through the reset.
        decay_input: charge with `(1 - decay) * x`.
    """

    steps: int
    repeat: bool
    threshold: float
    surrogate: str
    shape: float
    amount: float | None
    detach_reset: bool
    decay_input: bool


def fire_of(neuron: LIF) -> Fire | None:
    """The neuron as data; None if its surrogate is none of regraft's own."""
    if type(neuron.surrogate) not in _SURROGATES:
        return None
    name, attribute = _SURROGATES[type(neuron.surrogate)]
    amount = neuron.threshold if neuron.subtract is None else neuron.subtract
    return Fire(
        steps=neuron.steps,
        repeat=neuron.static,
        threshold=neuron.threshold,
        surrogate=name,
        shape=getattr(neuron.surrogate, attribute),
        amount=amount if neuron.reset == "soft" else None,
        detach_reset=neuron.detach_reset,
        decay_input=neuron.decay_input,
    )


_SURROGATES: dict[type, tuple[str, str]] = {
    Triangle: ("triangle", "width"),
    Rectangle: ("rectangle", "width"),
    Atan: ("atan", "sharpness"),
    Sigmoid: ("sigmoid", "sharpness"),
}


def number(decay: float | Tensor) -> float:
    """The decay as a number."""
    return float(decay.detach()) if isinstance(decay, torch.Tensor) else decay
