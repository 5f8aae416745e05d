"""From a recipe to a run folder. The names load on first use: a recipe can be read without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "override": "recipe",
    "fit": "fit",
    "evaluate": "evaluate",
    "reestimate": "evaluate",
    "load": "load",
    "load_study": "study",
    "train_study": "study",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regraft.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"regraft.training.{_HOME[name]}"), name)
    globals()[name] = value  # a function outranks the submodule of the same name from here on
    return value


if TYPE_CHECKING:
    from regraft.training.evaluate import evaluate, reestimate
    from regraft.training.fit import fit
    from regraft.training.load import load
    from regraft.training.recipe import Recipe, load_recipe, override
    from regraft.training.study import load_study, train_study
