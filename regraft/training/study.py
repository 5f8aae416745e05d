"""A study: several recipes that differ in a few settings (arms), trained one after the other into one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.errors import RunError, UsageError, nearest
from regraft.training.files import write_json
from regraft.training.recipe import Recipe, override, read_yaml

Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Study:
    """`arms`: recipes by name, in the order of training. A study of one arm is that run alone."""

    name: str
    arms: Mapping[str, Recipe]


def load_study(source: str | Path, changes: Mapping[str, Any] | None = None, only: Sequence[str] = ()) -> Study:
    """The study in a recipe file, or in the shipped recipe of that name.

    Args:
        changes: settings that apply to every arm that does not set them itself.
        only: names of the arms to keep.

    Raises `UsageError` for whatever the file or the changes cannot mean.
    """
    tree = read_yaml(source)
    arms = tree.pop("arms", None)
    base = override(override(Recipe(), tree, where=str(source)), changes or {}, where="flags")
    if arms is None and only:
        raise UsageError(f"{source} has no arms, so there is no {only[0]!r} among them: leave out --only")
    if arms is None:
        return Study(base.name, {base.name: base})
    good = isinstance(arms, dict) and all(isinstance(k, str) and isinstance(a, dict | None) for k, a in arms.items())
    if not (good and arms):
        raise UsageError(
            f"{source}: arms should map names to settings, for example 'sparse: {{topology.density: 0.1}}'"
        )
    for name in only:
        if name not in arms:
            raise UsageError(f"{source} has no arm {name!r}: {nearest(name, arms)}")
    kept = {name: arm or {} for name, arm in arms.items() if not only or name in only}
    return Study(
        base.name,
        {name: override(replace(base, name=name), arm, f"{source}, arm {name}") for name, arm in kept.items()},
    )


def with_teachers(study: Study) -> Study:
    """The study with the teachers that its arms need as arms of their own, each before its first student."""
    from regraft.training.build import teacher_recipe

    arms: dict[str, Recipe] = {}
    for name, recipe in study.arms.items():
        first = teacher_recipe(recipe)
        if first is not None and first.hash not in {r.hash for r in arms.values()}:
            label = first.name if first.name not in {*arms, *study.arms} else f"teacher-of-{name}"
            arms[label] = replace(first, name=label)
        arms[name] = recipe
    return Study(study.name, arms)


def train_study(
    study: Study,
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    save_every: float = 120.0,
    watch: Watch = lambda record: None,
    command: str | None = None,
) -> list[Path]:
    """Train all arms, each into a folder of its name; what is finished by the same recipe is left as it is.

    With `resume`, what is unfinished is gone on with; `save_every` as in `fit`. Under `torchrun` all processes walk
    through the arms together.

    Returns the run folders, teachers included, in the order of training.

    Raises `RunError` if a folder holds a finished run of another recipe; nothing is touched then.
    """
    from regraft.training.build import check, teacher_recipe
    from regraft.training.fit import fit
    from regraft.training.ranks import joined
    from regraft.training.run import finished, refuse_another, refuse_unfinished

    folder = Path(folder or Path("runs") / study.name)
    single = len(study.arms) == 1 and study.name in study.arms
    whole = with_teachers(study)
    paths = {name: folder if single and name == study.name else folder / name for name in whole.arms}

    def looked_at() -> dict[str, bool]:
        """What is finished; what stands in the way shows now, before minutes of training."""
        done = {name: finished(paths[name], recipe) for name, recipe in whole.arms.items()}
        for name, recipe in whole.arms.items():
            if not done[name]:
                refuse_another(paths[name], recipe) if resume else refuse_unfinished(paths[name])
        return done

    by_hash = {recipe.hash: paths[name] for name, recipe in reversed(list(whole.arms.items()))}  # the first of its kind
    with joined() as ranks:
        done = ranks.first_does(looked_at)
        for name, recipe in whole.arms.items():
            if not done[name]:
                check(recipe)  # what cannot be meant, too
        if not single:
            ranks.first_does(lambda: _write_order(folder, study.name, list(whole.arms)))
        for name, recipe in whole.arms.items():
            if done[name]:
                watch({"run": name, "kind": "skip", "folder": str(paths[name])})
                continue
            watch({"run": name, "kind": "start", "epochs": recipe.training.stop or recipe.training.epochs})
            first = teacher_recipe(recipe)
            teacher = by_hash[first.hash] if first else None
            how = {"resume": resume, "save_every": save_every, "watch": watch, "command": command}
            fit(recipe, paths[name], teacher_run=teacher, **how)
    return list(paths.values())


def _write_order(folder: Path, name: str, arms: list[str]) -> None:
    """`study.json`: the arms in the order of the recipe, also after a training of some of them (`only`)."""
    path = folder / "study.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text(encoding="utf-8"))["arms"] if path.exists() else []
        kept = before if set(arms) <= set(before) else arms
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        kept = arms
    write_json(path, {"name": name, "arms": kept})
