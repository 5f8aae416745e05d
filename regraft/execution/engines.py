"""Which engine computes segments on which kind of device."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch

from regraft.execution import native


@cache
def engine(device: str) -> Any | None:
    """The module with `moments`, `fire`, `unfire` and `renormalise` for `cpu` or `cuda`; None where there is none.

    Triton comes with torch's CUDA builds, and is not looked for where no tensor is on a GPU.
    """
    if device == "cpu":
        return native if native.available() else None
    if device != "cuda" or torch.version.hip:
        return None
    try:
        return importlib.import_module("regraft.execution.triton")
    except ImportError:  # missing, or older than what the kernels are written for
        return None
