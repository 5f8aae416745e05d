"""`regraft list`: what a recipe may name, with a line on each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from regraft.cli.arguments import parse

Kind = Literal["all", "recipes", "models", "data", "rules", "teachers"]


@dataclass(frozen=True)
class List:
    """What recipes, models, data sets, rules and teachers there are."""

    kind: tyro.conf.Positional[Kind] = "all"
    """What to list."""


def run(arguments: list[str]) -> int:
    """Parse and print."""
    given = parse(List, arguments, verb="list", example="regraft list rules", default=List())
    for kind, rows in TABLES.items():
        if given.kind in ("all", kind):
            print(kind)
            for name, text in rows():
                print(f"  {name:<16} {text}")
            print()
    return 0


def _recipes() -> list[tuple[str, str]]:
    from regraft.training.recipe import SHIPPED

    return [
        (path.stem, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
        for path in sorted(SHIPPED.glob("*.yaml"))
    ]


def _first_lines(known: dict[str, Callable[..., Any]]) -> list[tuple[str, str]]:
    return [(name, (inspect.getdoc(function) or "").split("\n")[0]) for name, function in sorted(known.items())]


def _models() -> list[tuple[str, str]]:
    from regraft.models import MODELS

    return _first_lines(MODELS)


def _data() -> list[tuple[str, str]]:
    from regraft.data import DATA

    return _first_lines(DATA)


def _rules() -> list[tuple[str, str]]:
    from regraft.structure import PRESETS

    return [
        (name, f"drop {rule.drops.name}, grow {rule.grows.name}, zeta {rule.schedule.zeta:g}; {rule.source}")
        for name, rule in PRESETS.items()
    ]


def _teachers() -> list[tuple[str, str]]:
    from regraft.training.recipe import TEACHERS

    return list(TEACHERS.items())


TABLES: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "recipes": _recipes,
    "models": _models,
    "data": _data,
    "rules": _rules,
    "teachers": _teachers,
}
