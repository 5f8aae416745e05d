"""Energy of the arithmetic: operations times the picojoules of one, and nothing else.

Memory traffic, bias, normalisation and neuron updates are not in it; on most hardware memory costs more than the
arithmetic does. The figure compares networks under one convention; it predicts no device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from regraft.errors import UsageError


@dataclass(frozen=True)
class EnergyModel:
    """Picojoules of one multiply-accumulate and one accumulate, and where the numbers come from.

    Defaults: 45 nm, fp32: 4.6 pJ a MAC (multiply 3.7, add 0.9), 0.9 pJ an AC (Horowitz, ISSCC 2014).
    Raises `UsageError` for numbers that are not finite and positive.
    """

    mac: float = 4.6
    ac: float = 0.9
    source: str = "45 nm, fp32; Horowitz 2014"

    def __post_init__(self) -> None:
        for name in ("mac", "ac"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}: give the picojoules of one operation, a finite number above 0")

    def picojoules(self, *, macs: float, acs: float) -> float:
        """`macs * mac + acs * ac` in pJ."""
        return macs * self.mac + acs * self.ac

    def __str__(self) -> str:
        return f"{self.mac:g} pJ a MAC, {self.ac:g} pJ an AC ({self.source})"


HOROWITZ = EnergyModel()
