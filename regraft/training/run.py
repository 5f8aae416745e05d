"""The run folder: the only thing that passes between a training and everything after it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor

import regraft
from regraft.errors import RunError, UsageError
from regraft.kernels.processor import fast_bf16, processor, processor_flags
from regraft.training.checkpoint import FOLDER as CHECKPOINTS
from regraft.training.checkpoint import has_checkpoint
from regraft.training.files import remove_temporaries, write_bytes, write_json
from regraft.training.recipe import Recipe, differences, load_recipe, write_yaml

LOCK = ".lock"
FRAMES = 64  # wirings kept at most between birth and end
MAP = 64  # rows and columns of a wiring map at most


class RunFolder:
    """Writes one run: recipe, environment, log, wiring maps. Every file is readable with standard tools.

    `writes`: of several processes, one does; all methods of the others are silent.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._maps: dict[str, np.ndarray] = {}
        self._digest = hashlib.sha256()

    def begin(self, recipe: Recipe, precision: str, calibration: dict[str, Any]) -> None:
        """Write what is known before training, over what a run without any checkpoint left. Folders in it stay.

        Raises `RunError` if a run is there that is worth something, or the folder cannot be written.
        """
        if not self.writes:
            return
        refuse_finished(self.path)
        refuse_unfinished(self.path)
        try:
            for file in [file for file in self.path.iterdir() if file.is_file() and file.name != LOCK]:
                file.unlink()
            shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)  # of a write that a crash cut short
            write_yaml(recipe, self.path / "recipe.yaml")
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror}") from None
        chosen = {"precision": precision, "calibration": calibration}
        write_json(self.path / "environment.json", {**environment(), **chosen})

    def go_on(self, step: int, log_bytes: int, log_sha256: str = "") -> None:
        """Take log and maps back to where they were at the checkpoint of `step`, and note this machine.

        Raises `RunError` if one of them is missing or damaged; nothing is changed then.
        """
        if not self.writes:
            return
        path = self.path / "log.jsonl"
        try:
            log = path.read_bytes()[:log_bytes]
            if len(log) < log_bytes:
                raise RunError(f"{path} is damaged: it is shorter than the checkpoint of step {step} says")
            digest = hashlib.sha256(log)
            if log_sha256 and digest.hexdigest() != log_sha256:
                raise RunError(
                    f"{path} is damaged: it is not the one that the checkpoint of step {step} was saved with"
                )
            maps = load_arrays((self.path / "wiring.safetensors").read_bytes())
            kept = {key: value for key, value in maps.items() if key.startswith("birth/") or _step(key) <= step}
            described = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
            resumed = [*described.get("resumed", []), {"step": step, **environment()}]
            described = {**described, "resumed": resumed}
        except OSError as error:
            raise RunError(f"cannot go on in {self.path}: {error.filename}: {error.strerror}") from None
        except RunError:
            raise
        except Exception as error:  # what is no tensor raises whatever it finds
            what = f"wiring.safetensors or environment.json is damaged ({error})"
            raise RunError(f"cannot go on in {self.path}: {what}") from None
        write_json(self.path / "environment.json", described)
        try:
            os.truncate(path, log_bytes)
        except OSError as error:
            raise _cannot_log(self.path, error) from None
        for folder in (self.path, self.path / CHECKPOINTS):
            remove_temporaries(folder)
        self._maps, self._digest = kept, digest

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        if not self.writes:
            return
        line = (json.dumps(record) + "\n").encode()
        try:
            with (self.path / "log.jsonl").open("ab") as file:
                file.write(line)
        except OSError as error:
            raise _cannot_log(self.path, error) from None
        self._digest.update(line)

    def log_bytes(self) -> int:
        """Length of the log, all of it on the disk."""
        if not self.writes:
            return 0
        try:
            with (self.path / "log.jsonl").open("ab") as file:
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise _cannot_log(self.path, error) from None

    def log_sha256(self) -> str:
        """Of the log as this process knows it."""
        return self._digest.hexdigest()

    def born(self, name: str, weight: Tensor) -> None:
        """Remember the first layer's weights as they were at birth; absent connections are 0."""
        self._maps[f"birth/{name}"] = weight.detach().float().cpu().numpy().copy()

    def map(self, step: int, masks: dict[str, Tensor]) -> None:
        """Remember the wiring after the event of `step` as maps; `write_maps` puts them on disk."""
        for name, mask in masks.items():
            self._maps[f"{step:08d}/{name}"] = wiring_map(mask)

    def write_maps(self) -> None:
        """Write `wiring.safetensors`."""
        if self.writes and self._maps:
            write_bytes(self.path / "wiring.safetensors", save_arrays(self._maps))


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Make the folder, and keep every other process from training into it; a process that dies lets go.

    A run that has its result keeps neither the lock nor what only a resume needs.

    Raises `RunError` if another one holds it, or the folder cannot be made.
    """
    lock = FileLock(path / LOCK, timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process is training into {path}: wait for it, or choose another folder (--out)"
        ) from None
    except NotImplementedError:
        raise RunError(f"cannot lock {path}: its file system knows no locks. Choose another folder (--out)") from None
    except OSError as error:
        raise RunError(f"cannot write to {path}: {error.strerror}") from None
    try:
        yield
    finally:
        if (path / "result.json").exists():  # nobody can train here any more
            shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)
            with contextlib.suppress(OSError):
                (path / LOCK).unlink()
        lock.release()


def frames(every: int, last_event: int) -> frozenset[int]:
    """Steps of the events whose wiring is kept as maps: all, or `FRAMES` of them evenly spread, the last one included.

    >>> sorted(frames(every=10, last_event=40))
    [10, 20, 30, 40]
    """
    events = last_event // every
    return frozenset(every * math.ceil(events * (i + 1) / min(events, FRAMES)) for i in range(min(events, FRAMES)))


def _cannot_log(path: Path, error: OSError) -> RunError:
    return RunError(f"cannot write {path / 'log.jsonl'}: {error.strerror}. What was saved before is untouched")


def _step(key: str) -> int:
    """The step in a key of `wiring.safetensors`."""
    return int(key.partition("/")[0])


def refuse_finished(path: Path) -> None:
    """Raise `RunError` if `path` holds a finished run, of whatever recipe."""
    if (path / "result.json").exists():
        raise RunError(f"{path} holds a finished run: choose another folder (--out), or remove it")


def refuse_unfinished(path: Path) -> None:
    """Raise `RunError` if `path` holds an unfinished run with a checkpoint: there is something to go on with."""
    if (path / "recipe.yaml").exists() and has_checkpoint(path):
        raise RunError(
            f"{path} holds an unfinished run: go on with --resume, choose another folder (--out), or remove it"
        )


def refuse_another(path: Path, recipe: Recipe) -> None:
    """Raise `UsageError` if the run in `path` was begun with other settings, and say which."""
    if not (path / "recipe.yaml").exists():
        return
    try:
        begun = load_recipe(path / "recipe.yaml")
    except UsageError as error:
        raise RunError(f"{path / 'recipe.yaml'} is damaged: {error}") from None
    if begun.hash != recipe.hash:
        changed = {k: v for k, v in differences(begun, recipe).items() if k not in ("name", "data.folder")}
        if not changed:  # 8 and 8.0 in options are equal, and yet two settings
            raise UsageError(
                f"{path} was begun with other options of model or data: "
                f"resume with the recipe it was begun with ({path / 'recipe.yaml'}), or choose another folder (--out)"
            )
        first = next(iter(changed))
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        was = differences(recipe, begun)[first]
        raise UsageError(
            f"{path} was begun with {first} {was!r}, now it is {changed[first]!r}{more}: "
            f"resume with the recipe it was begun with ({path / 'recipe.yaml'}), or choose another folder (--out)"
        )


def finished(path: Path, recipe: Recipe) -> bool:
    """Whether `path` holds a finished run of this recipe. Raises `RunError` if it is one of another recipe."""
    try:
        found = json.loads((path / "result.json").read_text(encoding="utf-8"))["recipe_hash"]
    except OSError:
        return False
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(
            f"{path / 'result.json'} is damaged: move the folder away, or choose another with --out"
        ) from None
    if found != recipe.hash:
        raise RunError(
            f"{path} holds a finished run of another recipe ({found}, now {recipe.hash}): "
            f"choose another folder with --out, or move it away"
        )
    return True


def wiring_map(mask: Tensor) -> np.ndarray:
    """Existing connections between groups of output units (rows) and of input units (columns), at most 64 x 64.

    `mask` `[out, in, ...]` -> int32; up to 64 units a side, a row is one unit. Kernel positions are summed.
    """
    counts = mask.detach().cpu().reshape(mask.shape[0], mask.shape[1], -1).sum(dim=2).numpy().astype(np.int32)
    for axis in (0, 1):
        units = counts.shape[axis]
        starts = np.linspace(0, units, min(units, MAP), endpoint=False).astype(int)
        counts = np.add.reduceat(counts, starts, axis=axis)
    return np.ascontiguousarray(counts, dtype=np.int32)


def environment() -> dict[str, Any]:
    """What a figure depends on besides the recipe: versions, processor, threads, accelerator."""
    return {
        "regraft": regraft.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "features": torch.backends.cpu.get_cpu_capability(),
        "bf16": fast_bf16(),
        "amx": "amx_tile" in processor_flags(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
