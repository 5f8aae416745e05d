"""Things that a recipe names: one of ours, or somebody's own as `package.module:attribute`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from regraft.errors import UsageError, nearest


def lookup(name: str, known: Mapping[str, Any], kind: str) -> Any:
    """The thing called `name` among `known`, or the one at `package.module:attribute`.

    Raises `UsageError` for an unknown name (with the nearest one), or a path that leads nowhere.
    """
    if ":" not in name:
        if name not in known:
            raise UsageError(f"no {kind} is called {name!r}: {nearest(name, known)}, or package.module:name")
        return known[name]
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{kind} {name!r}: cannot import {path!r} ({error}); is it on PYTHONPATH?") from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UsageError(f"{kind} {name!r}: {path} has no {attribute!r}: {nearest(attribute, public)}")
    return getattr(module, attribute)
