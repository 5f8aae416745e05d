"""Tensors on disk: safetensors beside a JSON manifest with its sha256; the pair is the old one or the new one.

`last` and `best` are replaced in place (`write_tensors`). What a resume needs is a file of its own for each save,
and the last two are kept (`save_checkpoint`): a damaged one costs the steps since the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from regraft.errors import RunError
from regraft.training.files import write_bytes, write_json

FORMAT = 1
FOLDER = "checkpoints"
KEPT = 2


def write_tensors(path: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """`path` (safetensors) and `path` with suffix `.json`: the manifest with format version, sha256 of the tensors and
    `digest`, that of the manifest itself.

    Two files cannot be replaced at once, so the manifest goes first and holds the old one too (`before`): whichever
    of the two data files a crash leaves, its manifest is there.
    A tensor that a model has under two names is written twice: the format knows no sharing.
    """
    data = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    new = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **manifest}
    new["digest"] = digest(new)
    before = _valid_manifest(path)
    write_json(path.with_suffix(".json"), new if before is None else {**new, "before": before})
    write_bytes(path, data)
    if before is not None:
        write_json(path.with_suffix(".json"), new)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a file that `write_tensors` wrote.

    Raises `RunError` if a file is missing or damaged, or of another format version.
    """
    manifest = read_manifest(path)
    try:
        return load(path.read_bytes()), manifest
    except Exception as error:  # what is no tensor raises whatever it finds: SafetensorError, KeyError, TypeError, ...
        raise RunError(f"{path} is damaged: {error}") from None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest that belongs to the tensors in `path`; they have its sha256. Raises as `read_tensors` does."""
    beside = path.with_suffix(".json")
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest = json.loads(beside.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RunError(f"{beside} is damaged: it is not JSON") from None
    if not isinstance(manifest, dict):
        raise RunError(f"{beside} is damaged: it is no manifest")
    before = manifest.get("before")
    if manifest.get("sha256") != found and isinstance(before, dict) and before.get("sha256") == found:
        manifest = before  # a crash came between the two files
    if manifest.get("format") != FORMAT:
        raise RunError(f"{path} has format {manifest.get('format')!r}; this version of regraft reads format {FORMAT}")
    if manifest.get("sha256") != found:
        raise RunError(f"{path} is damaged: its sha256 is not the one in {beside.name}")
    if manifest.get("digest") != digest(manifest):
        raise RunError(f"{beside} is damaged: its digest is not that of what it says")
    return manifest


def digest(manifest: Mapping[str, Any]) -> str:
    """sha256 over what a manifest says, as it is when it has been read again."""
    said = json.loads(json.dumps({key: v for key, v in manifest.items() if key not in ("digest", "before")}))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _valid_manifest(path: Path) -> dict[str, Any] | None:
    try:
        return {key: value for key, value in read_manifest(path).items() if key != "before"}
    except RunError:
        return None


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """All that a resume at optimiser step `step` needs, as one more file; the last `KEPT` stay.

    Raises `RunError` if it cannot be written; the earlier ones stay good.
    """
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}. What was saved before is untouched") from None
    write_tensors(folder / f"{step:010d}.safetensors", tensors, manifest)
    for old in _steps(folder)[:-KEPT]:
        for suffix in (".safetensors", ".json"):
            with contextlib.suppress(OSError):
                (folder / f"{old:010d}{suffix}").unlink()


def has_checkpoint(run: Path) -> bool:
    """Whether a run has saved where it stood, be it damaged since."""
    return bool(_steps(run / FOLDER))


def newest_checkpoint(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint of a run that is whole; None if none was ever written.

    Warns of a damaged one that it passes over. Raises `RunError` if there are some and none is whole.
    """
    steps = _steps(run / FOLDER)
    said: list[str] = []
    for step in reversed(steps):
        path = run / FOLDER / f"{step:010d}.safetensors"
        try:
            found = read_tensors(path)
        except RunError as error:
            said.append(str(error))
            continue
        if said:
            warnings.warn(f"{said[0]}. Going on from the checkpoint before it, step {step}", stacklevel=2)
        return found
    if said:
        raise RunError(f"{said[0]}. No other checkpoint is whole: start anew in another folder (--out)")
    return None


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending; a manifest alone was never finished, for the data come last."""
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"(\d{10})\.safetensors", path.name) for path in folder.iterdir())
    return sorted(int(m[1]) for m in found if m)
