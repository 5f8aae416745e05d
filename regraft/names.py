"""Things that a recipe names: one of ours, or somebody's own as `package.module:attribute`."""

from __future__ import annotations

import importlib
import inspect
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
    except (ImportError, ValueError, TypeError) as error:  # the last for a relative path
        raise UsageError(f"{kind} {name!r}: cannot import {path!r} ({error}); is it on PYTHONPATH?") from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UsageError(f"{kind} {name!r}: {path} has no {attribute!r}: {nearest(attribute, public)}")
    return getattr(module, attribute)


def check_call(function: Any, what: str, /, *args: Any, **kwargs: Any) -> None:
    """Raise `UsageError` unless `function` can be called so; a TypeError from within would hide its cause."""
    if not callable(function):
        raise UsageError(f"{what} is a {type(function).__name__}: it must be a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"{what}: {error}; it takes {', '.join(signature.parameters)}") from error
