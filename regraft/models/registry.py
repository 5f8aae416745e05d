"""Models by name, as recipes ask for them: one of ours, or somebody's own function `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from regraft.errors import UsageError, nearest
from regraft.models.dvsgesture import dvsgesture
from regraft.models.resnet import resnet19, resnet_small
from regraft.models.vgg import tiny_vgg, vgg16

MODELS: dict[str, Callable[..., nn.Module]] = {
    "dvsgesture": dvsgesture,
    "resnet19": resnet19,
    "resnet_small": resnet_small,
    "tiny_vgg": tiny_vgg,
    "vgg16": vgg16,
}


def build(name_or_path: str, **settings: Any) -> nn.Module:
    """The model of that name, or the one `package.module:function` returns, built with `settings`.

    Raises:
        UsageError: for an unknown name, a path that does not lead to a function, a setting that the function does not
            take, or a function that does not return an `nn.Module`.
    """
    function = _imported(name_or_path) if ":" in name_or_path else _named(name_or_path)
    _check_settings(name_or_path, function, settings)
    model = function(**settings)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name_or_path} returned {type(model).__name__}: it must return an nn.Module")
    return model


def _named(name: str) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise UsageError(f"no model is called {name!r}: {nearest(name, MODELS)}, or package.module:function")
    return MODELS[name]


def _imported(path: str) -> Callable[..., nn.Module]:
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UsageError(f"model {path}: cannot import {module_name!r} ({error}); is it on PYTHONPATH?") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UsageError(
            f"model {path}: {module_name} has no function {function_name!r}: {nearest(function_name, functions)}"
        )
    return function


def _check_settings(name: str, function: Callable[..., nn.Module], settings: dict[str, Any]) -> None:
    """Refuse settings that `function` does not take, before it runs (a TypeError from within would hide its cause)."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have none
        return
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise UsageError(f"model {name}: {error}; it takes {', '.join(signature.parameters)}") from error
