"""Small files written whole or not at all; no torch here, so that the command line stays quick."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from regraft.errors import RunError


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    Raises `RunError` if the folder cannot be written or is full; what was there stays.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}. What was saved before is untouched") from None


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON, by `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
