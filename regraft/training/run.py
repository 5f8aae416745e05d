"""The run folder: the only thing that passes between a training and everything after it."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as save_arrays
from torch import Tensor

import regraft
from regraft.errors import RunError
from regraft.training.files import write_bytes, write_json
from regraft.training.recipe import Recipe, write_yaml

MAP = 64  # rows and columns of a wiring map at most


class RunFolder:
    """Writes one run: recipe, environment, log, wiring maps, result. Every file is readable with standard tools."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def begin(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Make the folder. What an unfinished run left there moves aside; a finished one is never touched.

        Folders in it stay: its teacher's run is one.
        Raises `RunError` if a finished run is there, or the folder cannot be made.
        """
        refuse_finished(path)
        try:
            if (path / "recipe.yaml").exists():
                number = 1
                while (aside := path.with_name(f"{path.name}.unfinished-{number}")).exists():
                    number += 1
                aside.mkdir()
                for file in [file for file in path.iterdir() if not file.is_dir()]:
                    file.rename(aside / file.name)
            path.mkdir(parents=True, exist_ok=True)
            write_yaml(recipe, path / "recipe.yaml")
        except OSError as error:
            raise RunError(f"cannot write to {path}: {error.strerror}") from None
        write_json(path / "environment.json", environment())
        return cls(path)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path / 'log.jsonl'}: {error.strerror}") from None

    def map(self, step: int, masks: dict[str, Tensor]) -> None:
        """Remember the wiring after the event of `step` as maps; `write_maps` puts them on disk."""
        for name, mask in masks.items():
            self._maps[f"{step:08d}/{name}"] = wiring_map(mask)

    def write_maps(self) -> None:
        """Write `wiring.safetensors`."""
        if self._maps:
            write_bytes(self.path / "wiring.safetensors", save_arrays(self._maps))


def refuse_finished(path: Path) -> None:
    """Raise `RunError` if `path` holds a finished run, of whatever recipe."""
    if (path / "result.json").exists():
        raise RunError(f"{path} holds a finished run: choose another folder (--out), or remove it")


def finished(path: Path, recipe: Recipe) -> bool:
    """Whether `path` holds a finished run of this recipe. Raises `RunError` if it is one of another recipe."""
    try:
        found = json.loads((path / "result.json").read_text(encoding="utf-8"))["recipe_hash"]
    except OSError:
        return False
    except (ValueError, KeyError, TypeError):
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
        "bf16": bool(_flags() & {"avx512_bf16", "amx_bf16", "bf16"}),
        "amx": "amx_tile" in _flags(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """The processor's model name, as the operating system gives it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _flags() -> set[str]:
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()
