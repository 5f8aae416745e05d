"""Small files written whole or not at all; no torch here, so that the command line stays quick."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from regraft.errors import RunError


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    Raises `RunError` if the folder cannot be written or is full; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # not tempfile: its files are for the owner alone
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _settle(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. What was saved before is untouched") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON, by `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left; nobody else may write to `folder` now."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if re.fullmatch(r"\..+\.\d+", path.name):
                path.unlink()


def _settle(folder: Path) -> None:
    """Make renames in `folder` last through a loss of power; not every system can open a folder, and none needs it
    for a crash of the process alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
