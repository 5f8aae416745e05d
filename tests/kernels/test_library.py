"""Which instruction set and which threads the kernels take, on processors and beside runtimes of all kinds."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regraft.errors import UsageError
from regraft.kernels import library as room
from regraft.kernels.build import SOURCES
from regraft.kernels.segment import Segment


@pytest.mark.parametrize(
    ("best", "wanted", "chosen"),
    [
        ("avx512", None, "avx512"),
        ("avx512", "avx2", "avx2"),
        ("avx2", None, "avx2"),
        ("avx2", "avx512", None),
        ("portable", "avx2", None),
        ("portable", "portable", "portable"),
        ("avx2", "", None),
    ],
)
def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch, best, wanted, chosen):
    """Its first instruction would end the process."""
    loaded = SimpleNamespace(regraft_best=lambda: best.encode())
    monkeypatch.setattr(room, "library", lambda: loaded)
    monkeypatch.setattr(room, "instruction_sets", lambda: {name: [] for name in ("avx512", "avx2", "portable")})
    monkeypatch.delenv("REGRAFT_ISA", raising=False)
    if wanted is not None:
        monkeypatch.setenv("REGRAFT_ISA", wanted)
    if chosen is not None:
        assert room.instruction_set.__wrapped__() == chosen
    else:
        with pytest.raises(UsageError, match=f"this processor can do {best}"):
            room.instruction_set.__wrapped__()


class Sources:
    """`regraft_sources` of a library that was compiled from some sources."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def __call__(self) -> bytes:
        return self.fingerprint.encode()


def test_a_library_of_other_sources_is_not_loaded(monkeypatch, tmp_path):
    """Its functions may take other arguments."""
    loaded = SimpleNamespace(regraft_best=SimpleNamespace(), regraft_sources=Sources("older"))
    (tmp_path / room.NAME).touch()
    monkeypatch.setattr(room, "PATH", tmp_path / room.NAME)
    monkeypatch.setattr(room.ctypes, "CDLL", lambda path: loaded)
    monkeypatch.setattr(room, "_team", lambda: None)
    monkeypatch.delenv("REGRAFT_KERNELS", raising=False)
    assert room.library.__wrapped__() is None
    loaded.regraft_sources = Sources(room.fingerprint())
    assert room.library.__wrapped__() is loaded


@pytest.mark.parametrize("team", [None, "torch's"])
def test_the_threads_are_those_that_torch_has_already(monkeypatch, tmp_path, team):
    given: list[Any] = []
    loaded = SimpleNamespace(regraft_best=SimpleNamespace(), regraft_use_team=given.append)
    loaded.regraft_sources = Sources(room.fingerprint())
    (tmp_path / room.NAME).touch()
    monkeypatch.setattr(room, "PATH", tmp_path / room.NAME)
    monkeypatch.setattr(room.ctypes, "CDLL", lambda path: loaded)
    monkeypatch.setattr(room, "_team", lambda: team)
    monkeypatch.delenv("REGRAFT_KERNELS", raising=False)
    assert room.library.__wrapped__() is loaded
    assert given == ([] if team is None else [team])


def test_of_several_runtimes_torchs_own_is_taken(monkeypatch):
    maps = "".join(
        f"7f0-7f1 r-xp 00000000 08:01 42   {path}\n"
        for path in (
            "/usr/lib/libgomp.so.1",
            "/usr/lib/libm.so",
            "/x y/torch/lib/libgomp-1.so.1",
            "/usr/lib/libgomp.so.1",
        )
    )
    monkeypatch.setattr(Path, "read_text", lambda self, **_: maps)
    assert room._loaded_runtimes() == ["/x y/torch/lib/libgomp-1.so.1", "/usr/lib/libgomp.so.1"]


def test_the_description_of_a_segment_is_the_one_of_the_header():
    """A field too many would be read as the one behind it, by C alone."""
    header = re.search(r"typedef struct \{(.*?)\} regraft_segment;", (SOURCES / "segment.h").read_text(), re.DOTALL)
    assert header is not None
    lines = re.sub(r"/\*.*?\*/", "", header[1], flags=re.DOTALL)
    declared = re.findall(r"(int64_t|int32_t|double) ([^;]+);", lines)
    types = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "double": ctypes.c_double}
    expected = [(name.strip(), types[kind]) for kind, names in declared for name in names.split(",")]
    assert list(Segment._fields_) == expected
