"""What the processor is and can do, as the operating system says."""

from __future__ import annotations

import platform
from pathlib import Path


def fast_bf16() -> bool:
    """Whether it has instructions for bf16; elsewhere bf16 is emulated and slower than fp32."""
    return bool(processor_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def processor() -> str:
    """The processor's model name, as the operating system gives it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def processor_flags() -> set[str]:
    """What the processor can do, in the words of the operating system; empty where it does not say."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()
