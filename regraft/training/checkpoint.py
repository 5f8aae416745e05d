"""Networks on disk: safetensors beside a JSON manifest with its sha256, replaced as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from regraft.errors import RunError
from regraft.training.files import write_bytes, write_json

FORMAT = 1


def write_tensors(path: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """`path` (safetensors) and `path` with suffix `.json`: the manifest with format version and sha256.

    A tensor that a model has under two names is written twice: the format knows no sharing.
    """
    data = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    write_bytes(path, data)
    write_json(path.with_suffix(".json"), {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **manifest})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a file that `write_tensors` wrote.

    Raises `RunError` if a file is missing or damaged, or of another format version.
    """
    try:
        data = path.read_bytes()
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {error.filename}: {error.strerror}") from None
    except ValueError:
        raise RunError(f"{path.with_suffix('.json')} is damaged: it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise RunError(f"{path} has format {found!r}; this version of regraft reads format {FORMAT}")
    if manifest.get("sha256") != hashlib.sha256(data).hexdigest():
        raise RunError(f"{path} is damaged: its sha256 is not the one in {path.with_suffix('.json').name}")
    try:
        return load(data), manifest
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {error}") from None
