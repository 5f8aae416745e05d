"""regraft: spiking neural networks that learn their wiring. The names below load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "LIF": "regraft.neurons",
    "PLIF": "regraft.neurons",
    "IF": "regraft.neurons",
    "spiking": "regraft.neurons.spiking",
    "Topology": "regraft.structure",
    "Rule": "regraft.structure",
    "Drop": "regraft.structure",
    "Grow": "regraft.structure",
    "Scope": "regraft.structure",
    "Schedule": "regraft.structure",
    "preset": "regraft.structure",
    "Distill": "regraft.distill",
    "VirtualTeacher": "regraft.distill",
    "NetworkTeacher": "regraft.distill",
    "AverageTeacher": "regraft.distill",
    "PreviousTeacher": "regraft.distill",
    "StepTeacher": "regraft.distill",
    "NestedTeacher": "regraft.distill",
    "LabelSmoothing": "regraft.distill",
    "measure": "regraft.metrics",
    "remove_neurons": "regraft.metrics",
    "execute": "regraft.execution",
    "Recipe": "regraft.training",
    "fit": "regraft.training.fit",
    "evaluate": "regraft.training.evaluate",
    "reestimate": "regraft.training.evaluate",
    "load": "regraft.training.load",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regraft' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from regraft.distill import (
        AverageTeacher,
        Distill,
        LabelSmoothing,
        NestedTeacher,
        NetworkTeacher,
        PreviousTeacher,
        StepTeacher,
        VirtualTeacher,
    )
    from regraft.execution import execute
    from regraft.metrics import measure, remove_neurons
    from regraft.neurons import IF, LIF, PLIF
    from regraft.neurons.spiking import spiking
    from regraft.structure import Drop, Grow, Rule, Schedule, Scope, Topology, preset
    from regraft.training import Recipe
    from regraft.training.evaluate import evaluate, reestimate
    from regraft.training.fit import fit
    from regraft.training.load import load
