"""The C allocator's settings: large blocks stay in the process instead of going back to the system after each use."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # <malloc.h> of glibc
_HUGEPAGE, _HUGE = 14, 2 << 20  # <sys/mman.h> of Linux
_KEPT, _PAD = 1 << 30, 64 << 20
_LARGE, _LINE = 1 << 20, 64


def keep_pages() -> bool:
    """Let glibc keep what is freed, up to a gibibyte; True where this has an effect. Ask for huge pages, too.

    By default every tensor above 32 MB is a mapping of its own, whose pages the kernel has to clear again at every
    step: a large part of a training step. And where a step walks through hundreds of megabytes in small pages, looking
    these up is another 5 to 10 % of it (on Zen 4, virtual). The peak of memory hardly changes, but it is not given
    back in between.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Older versions take at most 32 MiB for the first. Each of the others ends its own adaptation, so without it they
    # would make things worse.
    if not any(mallopt(_MMAP_THRESHOLD, value) for value in (_KEPT, 32 << 20)):
        return False
    taken = [mallopt(name, value) for name, value in ((_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _PAD))]
    _ask_for_huge_pages(libc, _KEPT - 2 * _PAD)
    return all(taken)


def _ask_for_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """For the next `size` bytes of the heap: a block of them, never touched, is advised on and freed. A wish only."""
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = (ctypes.c_void_p,), None
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if block := libc.malloc(size):
        first, end = -(-block // _HUGE) * _HUGE, (block + size) // _HUGE * _HUGE
        libc.madvise(first, end - first, _HUGEPAGE)
        libc.free(block)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU; what is large takes the place that one of its size has left.

    torch asks for aligned memory. glibc before 2.38 looks for that in places larger by what aligning may cost: never in
    one that such a tensor has left (its bug 14581). The heap of a training grows by it, and pages to which tensors move
    have to be cleared. In plain memory, aligned here, they return to their places.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return torch.empty(shape, dtype=dtype)
    block = np.empty(size + _LINE, np.uint8)
    first = -block.ctypes.data % _LINE
    return torch.from_numpy(block[first : first + size]).view(dtype).view(shape)
