"""How a compiled function is found and called."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from regraft.kernels.library import instruction_set, library

Type = Literal["f32", "bf16", "f64"]
Address = int | None


def available() -> bool:
    """Whether there are kernels to call."""
    return library() is not None


def pointers(*addresses: Address) -> list[ctypes.c_void_p]:
    """Addresses as C takes them; None is a null pointer."""
    return [ctypes.c_void_p(address) for address in addresses]


def call(type: Type, name: str, *arguments: Any) -> None:
    """Call the function of that name for that type, for the instruction set in use."""
    if function(type, name, ctypes.c_int)(*arguments):
        raise MemoryError(f"regraft's kernel {name} found no memory for its working arrays")


@cache
def function(type: Type, name: str, result: Any) -> Callable[..., Any]:
    """The function itself, with what it returns."""
    isa = "portable" if type == "f64" else instruction_set()
    found = getattr(library(), f"regraft_{name}_{type}_{isa}")
    found.restype = result
    return found
