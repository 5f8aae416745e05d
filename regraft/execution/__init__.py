"""Faster ways to compute a network, chosen by `execute`; the same spikes and gradients."""

from regraft.execution.calibration import Calibration, described, restored, shipped
from regraft.execution.execute import Execution, execute
from regraft.execution.memory import keep_pages

__all__ = ["Calibration", "Execution", "described", "execute", "keep_pages", "restored", "shipped"]
