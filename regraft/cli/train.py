"""`regraft train`: a recipe (and flags that change it) -> run folders, a table, a report."""

from __future__ import annotations

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
    finished already is left as it is. `--model.options.KEY VALUE` gives the model function a further argument.
    """

    source: tyro.conf.Positional[str] = "digits"
    """Recipe name or file."""
    out: Path | None = None
    """Folder to write to (runs/<name>)."""
    only: tuple[str, ...] = ()
    """Names of the arms to train, of all in the recipe."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def run(arguments: list[str]) -> int:
    """Parse, train, print the table and write the report."""
    flags, options = _model_options(arguments)
    source = flags[0] if flags and not flags[0].startswith("-") else "digits"
    given, base = _parse(flags, source)
    if given.source != source:  # it came after flags: what these change is its settings, not those of `digits`
        given, base = _parse(flags, given.source)
    changes = {**differences(base, given.settings), **({"model.options": options} if options else {})}
    study = load_study(given.source, changes, given.only)

    from regraft.cli.progress import Progress
    from regraft.cli.report import show
    from regraft.training.study import train_study

    command = shlex.join(["regraft", "train", *arguments])
    folder = given.out or Path("runs") / study.name
    with Progress(study) as progress:
        paths = train_study(study, folder, watch=progress.watch, command=command)
    return show(paths, folder / "report.html")


def _parse(flags: list[str], source: str) -> tuple[Train, Recipe]:
    """The flags, and the recipe whose settings are their defaults."""
    base = load_recipe(source)
    base = replace(base, model=replace(base.model, options={}))
    example = "regraft train digits --seed 1 --out runs/digits-1"
    return parse(Train, flags, verb="train", example=example, default=Train(source, settings=base)), base


def _model_options(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """`--model.options.KEY VALUE` apart from all else: what they may be, only the model function knows."""
    flags, options = [], {}
    waiting = iter(arguments)
    for argument in waiting:
        if not argument.startswith("--model.options."):
            flags.append(argument)
            continue
        key, equals, value = argument.partition("=")
        value = value if equals else next(waiting, None)
        if value is None:
            raise UsageError(f"{key} needs a value, for example {key} 64")
        options[key.removeprefix("--model.options.").replace("-", "_")] = parse_yaml(value, key)
    return flags, options
