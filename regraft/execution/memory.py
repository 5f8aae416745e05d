"""The C allocator's settings: large blocks stay in the process instead of going back to the system after each use."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # <malloc.h> of glibc


def keep_pages() -> bool:
    """Let glibc keep what is freed, up to a gibibyte; True where this has an effect.

    By default every tensor above 32 MB is a mapping of its own, whose pages the kernel has to clear again at every
    step: a large part of a training step. The peak of memory hardly changes, but it is not given back in between.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Older versions take at most 32 MiB for the first. Each of the others ends its own adaptation, so without it they
    # would make things worse.
    if not any(mallopt(_MMAP_THRESHOLD, value) for value in (1 << 30, 32 << 20)):
        return False
    taken = [mallopt(name, value) for name, value in ((_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))]
    return all(taken)
