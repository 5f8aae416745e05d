"""A sweep: every arm of a recipe x lists of settings x seeds, as run folders with names that say what is in them.

This file is arithmetic and one plan file, `sweep.json`; `pool.py` trains what it plans, `worker.py` is one process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regraft.errors import RunError, UsageError
from regraft.training.files import write_json
from regraft.training.recipe import Recipe, override, to_mapping
from regraft.training.source import parse_yaml
from regraft.training.study import Study, load_study

FORMAT = 1
LONGEST = 160  # bytes of a folder's name; file systems take 255


@dataclass(frozen=True)
class Planned:
    """One run: its folder within the sweep's, `<label>/seed-<n>`, its recipe, and the run that teaches it, if one does.

    `seed` is the student's for its teacher too, whose recipe has another one.
    """

    path: str
    recipe: Recipe
    seed: int
    teacher: str | None = None

    @property
    def label(self) -> str:
        """What all seeds of this run have in common, as its folder says it."""
        return self.path.partition("/")[0]


@dataclass(frozen=True)
class Sweep:
    """`runs`: label by label, each teacher before its first student; `axes`: the settings that vary."""

    name: str
    axes: Mapping[str, tuple[Any, ...]]
    runs: tuple[Planned, ...]

    @property
    def order(self) -> list[Planned]:
        """The runs in the order of training: one seed of everything first, so that there is early something to see."""
        seeds = list(dict.fromkeys(run.seed for run in self.runs))
        return sorted(self.runs, key=lambda run: seeds.index(run.seed))


def plan(
    source: str | Path, settings: Mapping[str, Sequence[Any]], seeds: Sequence[int] = (), only: Sequence[str] = ()
) -> Sweep:
    """All runs of a sweep over the recipe file, or the shipped recipe, called `source`.

    An arm that sets one of `settings` itself keeps its own value, as in `load_study`, and is trained once, not once a
    value.

    Args:
        settings: dotted name -> values; a list of one is a change of the recipe, no axis.
        seeds: the recipe's own unless given.
        only: names of the arms to keep.

    Raises `UsageError` for whatever cannot be meant: an unknown setting, an empty list, a value given twice, a
    combination that is none.
    """
    grid = {**settings, **({"seed": seeds} if seeds else {})}
    for name, values in grid.items():
        _check_values(name, values)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    studies = [(point, _study(source, point, grid, only)) for point in points]
    axes = {name: tuple(values) for name, values in settings.items() if len(values) > 1}
    live = {arm: _live(grid, [study.arms[arm] for _, study in studies]) for arm in studies[0][1].arms}
    for name in grid:
        if len(grid[name]) > 1 and not any(name in names for names in live.values()):
            raise UsageError(f"every arm of {source} sets {name} itself: there is nothing to vary")
    single = list(studies[0][1].arms) == [studies[0][1].name]
    keys = _short(axes)
    runs: dict[str, Planned] = {}
    for arm in studies[0][1].arms:
        for _, study in studies:
            recipe = study.arms[arm]
            parts = {keys[name]: value_of(recipe, name) for name in axes if name in live[arm]}
            label = label_of(parts, "" if single and parts else recipe.name)
            path = f"{label}/seed-{recipe.seed}"
            runs[path] = Planned(path, replace(recipe, name=label), recipe.seed)
    whole = list(_with_teachers(runs))
    labels = list(dict.fromkeys(run.label for run in whole))
    return Sweep(studies[0][1].name, axes, tuple(sorted(whole, key=lambda run: labels.index(run.label))))


def _check_values(name: str, values: Sequence[Any]) -> None:
    if "." not in name and name != "seed":
        raise UsageError(f"{name!r} is no setting that can vary: give its dotted name, for example topology.density")
    if not values:
        raise UsageError(f"{name} has no value: give one or several, for example {name} 0.05 0.1")
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in values]
    known = [
        json.dumps(float(value) if number else value, default=str)
        for value, number in zip(values, numbers, strict=True)
    ]
    if len(set(known)) < len(known):
        raise UsageError(f"{name} has a value twice: {', '.join(map(text_of, values))}; give each once")


def _study(source: str | Path, point: Mapping[str, Any], grid: Mapping[str, Any], only: Sequence[str]) -> Study:
    """The recipe's arms at one point; a complaint about it names the values that vary."""
    try:
        return load_study(source, point, only)
    except UsageError as error:
        varied = ", ".join(f"{name} {text_of(value)}" for name, value in point.items() if len(grid[name]) > 1)
        raise UsageError(f"{error} (at {varied})" if varied else str(error)) from None


def _live(grid: Mapping[str, Sequence[Any]], recipes: Sequence[Recipe]) -> set[str]:
    """The names of lists whose values reach these recipes of one arm at all points: it does not set them itself."""
    return {name for name in grid if len({json.dumps(value_of(recipe, name)) for recipe in recipes}) > 1}


def _with_teachers(runs: Mapping[str, Planned]) -> Iterator[Planned]:
    """The runs with the teachers that they need as runs of their own, each before its first student."""
    from regraft.training.build import teacher_recipe

    known: dict[str, str] = {}
    taken = {run.label for run in runs.values()}
    for run in runs.values():
        first = teacher_recipe(run.recipe)
        if first is None:
            yield run
            continue
        if first.hash not in known:
            label = f"teacher-of-{run.label}"
            while label in taken:  # an arm may have that very name
                label += "+"
            teacher = Planned(f"{label}/seed-{run.seed}", replace(first, name=label), run.seed)
            known[first.hash] = teacher.path
            yield teacher
        yield replace(run, teacher=known[first.hash])


def left_to_train(sweep: Sweep, folder: Path) -> list[Planned]:
    """The runs that are not finished in `folder`, in the order of training. Nothing is written.

    Raises `RunError` or `UsageError` if a folder holds a run of another recipe, or if a recipe cannot be meant; one
    seed of each label is looked at.
    """
    from regraft.training.build import check
    from regraft.training.run import finished, refuse_another

    left = [run for run in sweep.order if not finished(folder / run.path, run.recipe)]
    for run in left:
        refuse_another(folder / run.path, run.recipe)
    for run in {run.label: run for run in reversed(left)}.values():
        try:
            check(run.recipe)
        except UsageError as error:
            raise UsageError(f"{run.path}: {error}") from None
    return left


def value_of(recipe: Recipe, name: str) -> Any:
    """The value of a setting by its dotted name; None where `model.options` has none."""
    value: Any = recipe
    for part in name.split(".", 2):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


def label_of(parts: Mapping[str, Any], arm: str = "") -> str:
    """`sparse,density=0.05`: a folder's name that no other arm and parts have, in characters that file systems take.

    >>> label_of({"density": 0.05, "rule": "mine:rule"}, "sparse")
    'sparse,density=0.05,rule=mine%3Arule'
    """
    words = [f"{quote(key, safe='')}={quote(text_of(value), safe='+')}" for key, value in parts.items()]
    label = ",".join([*([quote(arm)] if arm else []), *words])
    if len(label) <= LONGEST:
        return label
    return f"{label[: LONGEST - 13]}~{hashlib.sha256(label.encode()).hexdigest()[:12]}"


def text_of(value: Any) -> str:
    """A setting's value as YAML that reads as this value again; words stay bare.

    >>> text_of("set"), text_of("1"), text_of(None), text_of(1e-5)
    ('set', '"1"', 'null', '1e-05')
    """
    if isinstance(value, str):
        try:
            bare = parse_yaml(value, "value") == value
        except UsageError:
            bare = False
        return value if bare else json.dumps(value)
    return json.dumps(value, separators=(",", ":"))


def _short(names: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name -> its last word, or the whole where that word would mean two things."""
    words = [name.rpartition(".")[2] for name in names]
    return {name: word if words.count(word := name.rpartition(".")[2]) == 1 else name for name in names}


def write_plan(sweep: Sweep, folder: Path, command: str) -> None:
    """`sweep.json`: everything that a worker, a report or a reader needs. Runs of an earlier plan stay listed."""
    path = folder / "sweep.json"
    runs = {run.path: _to_json(run) for run in sweep.runs}
    if path.exists():
        runs |= {entry["path"]: entry for entry in _entries(path) if entry["path"] not in runs}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from None
    axes = {name: list(values) for name, values in sweep.axes.items()}
    plan = {"format": FORMAT, "name": sweep.name, "command": command, "axes": axes, "runs": list(runs.values())}
    write_json(path, plan)


def read_planned(folder: Path, path: str) -> tuple[Planned, str]:
    """The run at `path` of the plan in `folder`, and the command that planned it.

    Raises `RunError` if there is no plan, or it is damaged or of another version, or has no such run.
    """
    file = folder / "sweep.json"
    entries = {entry["path"]: entry for entry in _entries(file)}
    if path not in entries:
        raise RunError(f"{file} has no run {path!r}: give the command `regraft sweep` again")
    entry = entries[path]
    try:
        recipe = override(Recipe(), entry["recipe"], where=str(file))
        for key, kind in (("seed", int), ("teacher", str | None), ("command", str)):
            if not isinstance(entry[key], kind):
                raise TypeError(f"{key} is {entry[key]!r}")
        return Planned(path, recipe, entry["seed"], entry["teacher"]), entry["command"]
    except (UsageError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is damaged ({error}): give the command `regraft sweep` again") from None


def _to_json(run: Planned) -> dict[str, Any]:
    return {
        "path": run.path,
        "seed": run.seed,
        "recipe_hash": run.recipe.hash,
        "teacher": run.teacher,
        "recipe": to_mapping(run.recipe),
    }


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree["format"] != FORMAT:
            raise RunError(f"{file} has format {tree['format']!r}; this version of regraft reads format {FORMAT}")
        return [{"command": tree["command"], **entry, "path": str(entry["path"])} for entry in tree["runs"]]
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(f"{file} is damaged: move it away; finished runs beside it stay as they are") from None
