"""Below which density a layer is faster over its existing connections: a measured table, and a pure function of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np

from regraft.errors import RunError
from regraft.kernels.library import instruction_set
from regraft.kernels.processor import processor_flags


@dataclass(frozen=True)
class Calibration:
    """Break-even densities on one kind of processor (`benchmarks/calibrate.py` measures them).

    Args:
        processor: what they were measured on, or why they were not.
        boundaries: for each kind of layer and arithmetic of its dense path (`convolution fp32`, `linear bf16`), how
            large a layer is, and the density below which it is faster over connections, in ascending order of the
            sizes. The size of a convolution is how many weights an output unit has, `in_channels / groups * kh * kw`;
            that of a linear layer is the smaller of its sides. Products of a kind without any are never replaced.
    """

    processor: str
    boundaries: Mapping[str, Sequence[tuple[float, float]]]

    def without(self, arithmetic: str) -> Calibration:
        """The same, but dense products in `arithmetic` stay."""
        kept = {key: value for key, value in self.boundaries.items() if not key.endswith(f" {arithmetic}")}
        return replace(self, boundaries=kept)


def boundary(table: Calibration, kind: str, arithmetic: str, size: int, filled: float = 1.0) -> float:
    """The density from which downwards a layer goes over its connections.

    Args:
        kind: `convolution` or `linear`.
        arithmetic: of the dense path, `fp32` or `bf16`.
        size: as in the table.
        filled: the share of lanes that hold an image. Connections are walked through for 16 images at a time, so 12
            take as long as 16.
    """
    points = table.boundaries.get(f"{kind} {arithmetic}", ())
    if not points:
        return 0.0
    sizes, densities = np.array(points, dtype=float).T
    found = float(np.interp(math.log(size), np.log(sizes), densities))  # beyond the ends: as there
    return found * filled


@cache
def shipped() -> Calibration:
    """The table for this kind of processor, as it came with the package."""
    kind, flags = instruction_set(), processor_flags()
    if kind == "avx512" and "amx_bf16" in flags:
        kind = "amx"
    if kind == "portable" and ("sse2" not in flags or "avx" in flags):
        kind = "other"
    return _read(json.loads(files("regraft.execution").joinpath("calibration.json").read_text(encoding="utf-8"))[kind])


def described(table: Calibration) -> dict[str, object]:
    """As JSON has it; `restored` reads it back."""
    return {"processor": table.processor, "boundaries": {key: list(value) for key, value in table.boundaries.items()}}


def restored(saved: object) -> Calibration:
    """The table that a run was begun with. Raises `RunError` if it is none."""
    try:
        return _read(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"the calibration that was saved is damaged ({error!r})") from None


def _read(tree: object) -> Calibration:
    if not isinstance(tree, Mapping):
        raise TypeError(f"{type(tree).__name__} in the place of a table")
    boundaries: dict[str, tuple[tuple[float, float], ...]] = {}
    for key, points in tree["boundaries"].items():
        pairs = tuple((float(size), float(density)) for size, density in points)
        sizes = [size for size, _ in pairs]
        if sizes != sorted(set(sizes)) or any(
            not (0 < size < math.inf and 0 <= density <= 1) for size, density in pairs
        ):
            raise ValueError(f"no ascending sizes with densities: {pairs}")
        boundaries[str(key)] = pairs
    return Calibration(str(tree["processor"]), boundaries)
