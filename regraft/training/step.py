"""One optimiser step: forward and loss, then backward, wiring and update."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from regraft.training.build import Parts, arithmetic


def forward(parts: Parts, network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and loss. `network` is `parts.model`, or what wraps it."""
    with arithmetic(x.device, parts.precision):
        logits = network(x)
        return logits, parts.criterion(logits, y, inputs=x)


def update(parts: Parts, network: nn.Module, loss: Tensor, clip: float | None) -> None:
    """Everything behind the loss; leaves no gradient."""
    loss.backward()
    parts.topology.mask_gradients()
    if clip is not None:
        clip_grad_norm_(network.parameters(), clip)
    parts.optimizer.step()
    parts.schedule.step()
    parts.optimizer.zero_grad()
