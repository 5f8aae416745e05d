"""Reading run folders: the only thing that passes from training to the report.

A folder is trusted once it is read: everything that the report needs is checked here, so a damaged file gives one
`RunError` that names the file and what to do, and nothing after this module meets a missing key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open

from regraft.errors import RunError
from regraft.report.schema import LAYER, LOG, RESULT, Check, lacking, whole

FORMAT = 1
"""The version of `result.json` that this module reads."""

MOST_SETTINGS = 10_000

MAPS = 64
"""Rows and columns that a map of `wiring.safetensors` has at most."""


@dataclass(frozen=True)
class Run:
    """One run folder, read. `epochs` and `events` are the log's records in order; `result` is None while unfinished."""

    folder: Path
    name: str
    seed: int
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    birth: Mapping[str, Any] | None
    epochs: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether training came to its end and wrote a result."""
        return self.result is not None

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """Layer name -> `{"connections": k, "of": N, "shape": [...]}` at birth; empty if there is no topology."""
        return dict(self.birth["layers"]) if self.birth else {}

    def section(self, name: str) -> dict[str, Any]:
        """One section of the recipe (`data`, `model`, ...); empty where the recipe has none."""
        value = self.recipe.get(name)
        return value if isinstance(value, dict) else {}


def read_run(folder: Path | str) -> Run:
    """Read one run folder.

    Raises:
        RunError: the folder is not a run folder, or one of its files is damaged or of another version.
    """
    folder = Path(folder)
    path = folder / "recipe.yaml"
    if not path.is_file():
        what = "it has no recipe.yaml" if folder.is_dir() else "there is no such folder"
        raise RunError(f"{folder} is not a run folder: {what}. Give the folder that `regraft train` wrote")
    text = _text(path)
    try:
        recipe = yaml.safe_load(text)
    except Exception as error:  # whatever Python raises gets out of PyYAML: '!!timestamp x' is an AttributeError
        raise damaged(path, f"it is not YAML ({_first_line(error)})") from None
    if not isinstance(recipe, dict):
        raise damaged(path, "it does not hold a mapping")
    if _size(recipe) > MOST_SETTINGS:
        raise damaged(path, f"it holds more than {MOST_SETTINGS:,} values")
    result = _result(folder / "result.json")
    log = _log(folder / "log.jsonl", finished=result is not None)
    births = [record for record in log if record["kind"] == "birth"]
    # A resumed run may log an epoch or event twice; what was written last is what the run went on with.
    epochs = {record["epoch"]: record for record in log if record["kind"] == "epoch"}
    events = {record["step"]: record for record in log if record["kind"] == "event"}
    named = result or recipe
    return Run(
        folder=folder,
        name=str(named.get("name") or folder.resolve().name),
        seed=_whole(path, named.get("seed", 0)),
        recipe=recipe,
        recipe_text=text,
        environment=_json(folder / "environment.json") if (folder / "environment.json").is_file() else {},
        birth=births[-1] if births else None,
        epochs=tuple(epochs[key] for key in sorted(epochs)),
        events=tuple(events[key] for key in sorted(events)),
        result=result,
    )


def find_runs(folder: Path | str) -> list[Run]:
    """The run folder itself, or the runs in its subfolders (the arms of a study) and those that `sweep.json` lists.

    They come in the order of `study.json` (key `arms`) or `sweep.json` (key `runs`) where there is one; all others
    after them in the order in which they finished, the unfinished last.

    Raises:
        RunError: there is no run here, or one of them is damaged.
    """
    folder = Path(folder)
    if (folder / "recipe.yaml").is_file():
        return [read_run(folder)]
    if not folder.is_dir():
        raise RunError(f"{folder}: there is no such folder. Give a run folder, or a folder of run folders")
    planned = _planned_runs(folder / "sweep.json")
    found = {path.parent for path in folder.glob("*/recipe.yaml")}
    found |= {folder / name for name in planned if (folder / name / "recipe.yaml").is_file()}
    if not found:
        raise RunError(f"{folder} holds no runs: neither it nor a folder in it has a recipe.yaml. Train one first")
    listed = planned or _listed_arms(folder / "study.json")

    def order(path: Path) -> tuple[int, float, str]:
        if (name := path.relative_to(folder).as_posix()) in listed:
            return listed.index(name), 0.0, name
        result = path / "result.json"
        return len(listed), result.stat().st_mtime if result.is_file() else math.inf, path.name

    return [read_run(path) for path in sorted(found, key=order)]


def labels(runs: list[Run]) -> list[str]:
    """What to call each run beside the others: its name, with the seed or the folder where names repeat."""
    names = [run.name for run in runs]
    seeded = [f"{run.name} · seed {run.seed}" if names.count(run.name) > 1 else run.name for run in runs]
    return [
        f"{label} · {run.folder.name}" if seeded.count(label) > 1 else label
        for run, label in zip(runs, seeded, strict=True)
    ]


def read_wiring(run: Run) -> dict[str, dict[int, np.ndarray]]:
    """The group maps of a run: layer -> step -> integers `[rows <= 64, cols <= 64]`, steps ascending.

    An entry counts the existing connections between a group of output units (row) and of input units (column).
    Empty where the run wrote none.

    Raises:
        RunError: the file is damaged, or a layer changes its shape between two events.
    """
    path = run.folder / "wiring.safetensors"
    if not path.is_file():
        return {}
    arrays = read_arrays(path, lambda key: not key.startswith("birth/"))
    maps: dict[str, dict[int, np.ndarray]] = {}
    for key in sorted(arrays):
        step, slash, layer = key.partition("/")
        value = arrays[key]
        if not (slash and re.fullmatch("[0-9]{1,15}", step) and value.ndim == 2 and value.dtype.kind in "iu"):
            raise damaged(path, f"the entry {key!r} is not a map of integers named 'step/layer'")
        if not (value.size and max(value.shape) <= MAPS and value.min() >= 0 and value.max() < 2**31):
            raise damaged(path, f"the entry {key!r} is no map of counts of at most {MAPS} x {MAPS}")
        known = maps.setdefault(layer, {})
        if any(other.shape != value.shape for other in known.values()):
            raise damaged(path, f"the layer {layer!r} changes its shape at step {int(step)}")
        known[int(step)] = value
    order = dict.fromkeys([*run.layers, *maps])
    return {name: maps[name] for name in order if name in maps}


def read_arrays(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file whose key is wanted. Raises `RunError` if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys() if wanted(key)}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        # What a header may claim (types that numpy lacks among it) is as varied as what is raised for it.
        raise damaged(path, f"it is not a safetensors file ({_first_line(error)})") from None


def _result(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    result = _json(path)
    if result.get("format") != FORMAT:
        raise RunError(
            f"{path} has format {str(result.get('format'))[:40]}, this regraft reads format {FORMAT}. "
            f"Read it with the version of regraft that wrote it (environment.json names it), or train it again"
        )
    _check(path, result, RESULT)
    return result


def _log(path: Path, *, finished: bool) -> list[dict[str, Any]]:
    if not path.is_file():
        if finished:
            raise RunError(f"{path} is missing from a finished run. Restore it from a copy, or train the run again")
        return []
    lines = _text(path).split("\n")
    lines = lines[:-1] if not lines[-1] else lines
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            # A run that is being written, or that was killed, may end in half a line: that is no damage.
            if number == len(lines) and not finished:
                break
            raise damaged(path, f"line {number} is not JSON") from None
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            raise damaged(path, f"line {number} is not a record with a 'kind'")
        _check(path, record, LOG.get(record["kind"], {}), f"line {number}")
        if record["kind"] == "birth":
            for layer, counts in record["layers"].items():
                _check(path, counts, LAYER, f"layer {layer!r} of line {number}")
        records.append(record)
    return records


def _check(path: Path, record: Any, fields: Mapping[str, Check], where: str = "it") -> None:
    lacks = lacking(record, fields)
    if lacks:
        raise damaged(path, f"{where} lacks {lacks}")


def _listed_arms(path: Path) -> list[str]:
    if not path.is_file():
        return []
    arms = _json(path).get("arms", [])
    if not isinstance(arms, list | dict):
        raise damaged(path, "its 'arms' is not a list of names")
    return [str(arm) for arm in arms]


def _planned_runs(path: Path) -> list[str]:
    """The folders of a sweep's runs, as `sweep.json` names them, relative to it; a path out of it is not followed."""
    if not path.is_file():
        return []
    try:
        names = [str(run["path"]) for run in _json(path)["runs"]]
    except (KeyError, TypeError):
        raise damaged(path, "its 'runs' is not a list of runs with a 'path'") from None
    return [name for name in names if not ({"..", ""} & set(name.split("/")))]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError):
        raise damaged(path, "it is not JSON") from None
    if not isinstance(value, dict):
        raise damaged(path, "it does not hold an object")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise damaged(path, "it is not text in UTF-8") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. Check its permissions") from None


def _whole(path: Path, value: Any) -> int:
    if not whole(value):
        raise damaged(path, f"its seed is {str(value)[:40]}, not a whole number")
    return value


def _size(value: Any, left: int = 10_001, depth: int = 0) -> int:
    """Values in a nested one, counted up to `left`: a few aliases of YAML can stand for more than memory holds."""
    if not isinstance(value, dict | list | tuple | set) or depth > 50:
        return 1 if depth <= 50 else left
    count = 1
    for item in value.values() if isinstance(value, dict) else value:
        if count >= left:
            break
        count += _size(item, left - count, depth + 1)
    return count


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def damaged(path: Path, what: str) -> RunError:
    """The one error for a file of a run folder that is not what training wrote."""
    return RunError(f"{path} is damaged: {what}. Restore it from a copy, or train the run again")
