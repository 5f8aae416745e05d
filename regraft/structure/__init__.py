"""Structure learning: connections that die and grow at a density one chooses."""

from regraft.structure.events import Event
from regraft.structure.presets import PRESETS, preset
from regraft.structure.rules import DROP, GROW, Drop, Grow, Rule, Scope, View
from regraft.structure.schedule import Schedule
from regraft.structure.topology import Topology

__all__ = [
    "DROP",
    "GROW",
    "PRESETS",
    "Drop",
    "Event",
    "Grow",
    "Rule",
    "Schedule",
    "Scope",
    "Topology",
    "View",
    "preset",
]
