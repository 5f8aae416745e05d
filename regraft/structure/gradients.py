"""What growth and drop remember of gradients: the dense one of a step, its running forms, and saliency."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from regraft.structure.rules import Need, Rule

MOMENTUM = 0.9  # of the running average of dense gradients (SNFS as google-research/rigl has it)


class GradientMemory:
    """Gradients by parameter name, all fp32. Filled before gradients are masked, read at an event.

    `record`: the dense gradient of the current step. `average`: its sum since the last event, or its running
    average. `saliency`: `abs(w * g)` summed since the last event.
    """

    def __init__(self, rule: Rule) -> None:
        self.needs: Need = rule.grows.needs
        self.needs_saliency = rule.drops.needs_saliency
        self.record: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.saliency: dict[str, Tensor] = {}
        self._seen: dict[str, weakref.ref[Tensor]] = {}

    def note(self, name: str, grad: Tensor, mask: Tensor) -> None:
        """Keep the dense gradient of this step; called before `grad` is masked, as often as a user masks in a step.

        Where nothing has come at absent connections since the last call, the record stands, even if `grad` was clipped
        or replaced meanwhile. Where something has, in the same tensor, it is a further backward of this step: added.
        In another tensor, the earlier step was never taken: the record begins anew.
        """
        seen = self._seen.get(name, lambda: None)()
        record = self.record.get(name)
        came = grad.detach().float()
        if record is not None and not bool(came.masked_fill(mask, 0).any()):
            return
        if record is None or seen is not grad:
            self.record[name] = came.clone()
            self._seen[name] = weakref.ref(grad)
        else:
            record.copy_(torch.where(mask, came, record + came))

    def accumulate(self, name: str, weight: Tensor, scale: float) -> None:
        """Once a step, for a layer that has a record; `scale` undoes the loss scaling of a fused optimiser."""
        if name not in self.record:
            return
        g = self.record[name].mul_(scale)
        if self.needs_saliency:
            salience = (weight.detach().float() * g).abs_()
            self.saliency[name] = self.saliency[name].add_(salience) if name in self.saliency else salience
        if self.needs in ("accumulated", "momentum"):
            old = self.average.setdefault(name, torch.zeros_like(g))
            old.add_(g) if self.needs == "accumulated" else old.lerp_(g, 1 - MOMENTUM)

    def gradients(self) -> dict[str, Tensor]:
        """What the grow part asked for."""
        return self.record if self.needs == "gradient" else self.average

    def clear(self) -> None:
        """Forget everything, before a saved state is restored."""
        for kept in (self.record, self.average, self.saliency):
            kept.clear()

    def end_step(self) -> None:
        """Forget the gradient of this step."""
        self.record.clear()

    def end_event(self) -> None:
        """Forget what is summed from event to event."""
        self.saliency.clear()
        if self.needs == "accumulated":
            self.average.clear()
