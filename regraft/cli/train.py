"""`regraft train`: a recipe (and flags that change it) -> run folders, a table, a report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from regraft.cli.arguments import parse
from regraft.training.recipe import Recipe
from regraft.training.study import load_study


@dataclass(frozen=True)
class Train:
    """Train a recipe: the name of a shipped one (`regraft list recipes`) or a YAML file.

    A file may hold several arms; settings given here apply to every arm that does not set them itself. What is
    finished already is left as it is.
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
    source = arguments[0] if arguments and not arguments[0].startswith("-") else "digits"
    wants_help = "-h" in arguments or "--help" in arguments
    base = Recipe() if wants_help else _base(source)
    given = parse(
        Train,
        arguments,
        verb="train",
        example="regraft train digits --seed 1 --out runs/digits-1",
        default=Train(source, settings=base),
    )
    changes = _differences(base, given.settings)
    study = load_study(given.source, changes, given.only)

    from regraft.cli.progress import Progress
    from regraft.cli.report import show
    from regraft.training.study import train_study

    command = shlex.join(["regraft", "train", *arguments])
    folder = given.out or Path("runs") / study.name
    with Progress(study) as progress:
        paths = train_study(study, folder, watch=progress.watch, command=command)
    return show(paths, folder / "report.html")


def _base(source: str) -> Recipe:
    from regraft.training.recipe import load_recipe

    return load_recipe(source)


def _differences(old: Any, new: Any, path: str = "") -> Mapping[str, Any]:
    """The settings in which two recipes differ, by dotted name."""
    found: dict[str, Any] = {}
    for f in fields(old):
        before, after = getattr(old, f.name), getattr(new, f.name)
        if is_dataclass(before):
            found |= _differences(before, after, f"{path}{f.name}.")
        elif before != after:
            found[f"{path}{f.name}"] = after
    return found
