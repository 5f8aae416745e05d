"""What the log says: one record a birth, an event, an epoch (docs/run_folder.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regraft.distill import over_time
from regraft.training.build import Parts
from regraft.training.evaluate import Evaluation
from regraft.training.ranks import Ranks
from regraft.training.state import Position


class Sums:
    """Means over the batches of an epoch, kept on the device until asked for: one row a batch."""

    NAMES = ("loss", "accuracy", "label_loss", "distill_loss")

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    @property
    def rows(self) -> Tensor | None:
        return torch.stack([row.cpu() for row in self._values]) if self._values else None

    @rows.setter
    def rows(self, rows: Tensor | None) -> None:
        self._values = [] if rows is None else list(rows)

    def add(self, loss: Tensor, logits: Tensor, y: Tensor, parts: dict[str, Tensor]) -> None:
        right = (over_time(logits.detach(), "mean").argmax(dim=1) == y).float().mean()
        self._values.append(torch.stack([loss.detach(), right, parts["label"], parts["distill"]]).float())

    def means(self, ranks: Ranks) -> dict[str, float]:
        own = torch.stack([row.cpu() for row in self._values]).mean(dim=0)
        return dict(zip(self.NAMES, torch.stack(ranks.gather(own)).mean(dim=0).tolist(), strict=True))


def birth(parts: Parts) -> dict[str, Any]:
    """The first wiring."""
    topology = parts.topology
    layers = {
        name: {"connections": int(m.sum()), "of": m.numel(), "shape": list(m.shape)}
        for name, m in topology.masks.items()
    }
    density = topology.connections / topology.possible
    return {
        "kind": "birth",
        "step": 0,
        "steps": parts.steps,
        "layers": layers,
        "density": density,
        "mask_hash": topology.mask_hash,
    }


def event(parts: Parts, born: Mapping[str, Tensor]) -> dict[str, Any]:
    """The event, and how many of the first connections are still there."""
    masks, event = parts.topology.masks, parts.topology.events[-1]
    alive = sum(int((first & masks[name]).sum()) for name, first in born.items())
    return {"kind": "event", **event.__dict__, "survival": alive / sum(int(first.sum()) for first in born.values())}


def epoch(at: Position, parts: Parts, train: dict[str, float], valid: Evaluation | None) -> dict[str, Any]:
    """What an epoch reached."""
    return {
        "kind": "epoch",
        "epoch": at.epoch,
        "step": at.step,
        "seconds": round(at.seconds, 3),
        "lr": parts.schedule.get_last_lr()[0],
        "train": {**train, "distill_loss": train["distill_loss"] if parts.criterion.teacher else None},
        "valid": {"loss": valid.loss, "accuracy": valid.accuracy} if valid else None,
        "rates": valid.rates if valid else {},
    }
