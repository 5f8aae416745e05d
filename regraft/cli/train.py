"""`regraft train`: a recipe (and flags that change it) -> run folders, a table, a report."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from regraft.cli.arguments import parse
from regraft.errors import UsageError
from regraft.training.recipe import Recipe, differences, load_recipe
from regraft.training.source import parse_yaml
from regraft.training.study import load_study


@dataclass(frozen=True)
class Train:
    """Train a recipe: the name of a shipped one (`regraft list recipes`) or a YAML file.

    A file may hold several arms; settings given here apply to every arm that does not set them itself. What is
    finished already is left as it is. `--model.options.KEY VALUE` gives the model function a further argument,
    `--data.options.KEY VALUE` the data function.
    """

    source: tyro.conf.Positional[str] = "digits"
    """Recipe name or file."""
    out: Path | None = None
    """Folder to write to (runs/<name>)."""
    only: tuple[str, ...] = ()
    """Names of the arms to train, of all in the recipe."""
    resume: bool = False
    """Go on with what is unfinished, to the same bits; start what is not begun."""
    save_every: float = 120.0
    """Seconds of training between checkpoints; each epoch ends with one too."""
    settings: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")] = field(default_factory=Recipe)


def run(arguments: list[str]) -> int:
    """Parse, train, print the table and write the report."""
    flags, options = _options(arguments)
    source = flags[0] if flags and not flags[0].startswith("-") else "digits"
    given, base = _parse(flags, source)
    if given.source != source:  # it came after flags: what these change is its settings, not those of `digits`
        given, base = _parse(flags, given.source)
    changes = {**differences(base, given.settings), **options}
    study = load_study(given.source, changes, given.only)
    if not given.save_every >= 0:
        raise UsageError(f"--save-every is {given.save_every}: give seconds, 0 for every step")

    from regraft.cli.progress import Progress
    from regraft.cli.report import show
    from regraft.training.ranks import speaks
    from regraft.training.study import train_study

    command = _command(arguments)
    folder = given.out or Path("runs") / study.name
    how = {"resume": given.resume, "save_every": given.save_every, "command": command}
    if not speaks():
        train_study(study, folder, **how)
        return 0
    with Progress(study) as progress:
        paths = train_study(study, folder, watch=progress.watch, **how)
    return show(paths, folder / "report.html")


def _command(arguments: list[str]) -> str:
    """The command line that repeats this run, or, with ` --resume` behind it, goes on with it."""
    world = os.environ.get("WORLD_SIZE", "1")
    start = ["regraft"] if world == "1" else ["torchrun", "--nproc-per-node", world, "-m", "regraft"]
    return shlex.join([*start, "train", *(word for word in arguments if word != "--resume")])


def _parse(flags: list[str], source: str) -> tuple[Train, Recipe]:
    """The flags, and the recipe whose settings are their defaults."""
    base = load_recipe(source)
    base = replace(base, model=replace(base.model, options={}), data=replace(base.data, options={}))
    example = "regraft train digits --seed 1 --out runs/digits-1"
    return parse(Train, flags, verb="train", example=example, default=Train(source, settings=base)), base


def _options(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """`--model.options.KEY VALUE` and those of the data apart from all else: only their functions know them."""
    flags: list[str] = []
    options: dict[str, dict[str, Any]] = {}
    waiting = iter(arguments)
    for argument in waiting:
        section = next((s for s in ("model.options", "data.options") if argument.startswith(f"--{s}.")), None)
        if section is None:
            flags.append(argument)
            continue
        key, equals, value = argument.partition("=")
        value = value if equals else next(waiting, None)
        if value is None:
            raise UsageError(f"{key} needs a value, for example {key} 64")
        name = key.removeprefix(f"--{section}.").replace("-", "_")
        options.setdefault(section, {})[name] = parse_yaml(value, key)
    return flags, options
