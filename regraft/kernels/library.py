"""Finds and loads the compiled kernels, and chooses the instruction set."""

from __future__ import annotations

import ctypes
import os
from ctypes.util import find_library
from functools import cache
from pathlib import Path

from regraft.errors import UsageError
from regraft.kernels.build import NAME, fingerprint, instruction_sets

PATH = Path(__file__).parent / NAME


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, their threads those of the OpenMP runtime in this process; None if they were not built,
    or from other sources than those here.

    `REGRAFT_KERNELS=off` leaves them alone, as if they had not been built.
    """
    if os.environ.get("REGRAFT_KERNELS") == "off" or not PATH.exists():
        return None
    try:
        loaded = ctypes.CDLL(str(PATH))
        loaded.regraft_sources.restype = ctypes.c_char_p
        current = loaded.regraft_sources().decode() == fingerprint()
    except (OSError, AttributeError):  # built for another machine, or long ago
        return None
    if not current:
        return None
    loaded.regraft_best.restype = ctypes.c_char_p
    if (team := _team()) is not None:
        loaded.regraft_use_team(team)
    return loaded


@cache
def instruction_set() -> str:
    """`avx512`, `avx2` or `portable`: the best that this processor has, or what `REGRAFT_ISA` asks for.

    Raises `UsageError` where it asks for one that is unknown, or that this processor lacks.
    """
    loaded = library()
    best = "portable" if loaded is None else loaded.regraft_best().decode()
    wanted = os.environ.get("REGRAFT_ISA", best)
    known = list(instruction_sets())
    if wanted not in known or known.index(wanted) < known.index(best):
        fits = known[known.index(best) :]
        raise UsageError(f"REGRAFT_ISA is {wanted!r}: this processor can do {', '.join(fits)}")
    return wanted


def _team() -> ctypes._FuncPointer | None:  # pyright: ignore[reportPrivateUsage]
    """`GOMP_parallel` of the OpenMP runtime that is loaded already, torch's own before others.

    A second runtime would bring a second pool of threads, and each would spin while the other works.
    """
    for path in _loaded_runtimes():
        try:
            return ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
    return None


def _loaded_runtimes() -> list[str]:
    names = ("libgomp", "libiomp", "libomp")
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        maps = ""
    paths = dict.fromkeys(line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/" in line)
    found = [path for path in paths if Path(path).name.startswith(names)]
    found.sort(key=lambda path: "torch" not in path)
    return found or [name for short in ("gomp", "omp") if (name := find_library(short))]
