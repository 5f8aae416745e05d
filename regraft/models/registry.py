"""Models by name, as recipes ask for them: one of ours, or somebody's own function `package.module:function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from regraft.errors import RegraftError, UsageError
from regraft.models.dvsgesture import dvsgesture
from regraft.models.resnet import resnet19, resnet_small
from regraft.models.vgg import tiny_vgg, vgg16
from regraft.names import check_call, lookup

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
    function: Any = lookup(name_or_path, MODELS, "model")
    check_call(function, f"model {name_or_path}", **settings)
    try:
        model = function(**settings)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, RegraftError):
            raise
        raise UsageError(f"model {name_or_path} cannot be built with these settings: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name_or_path} returned {type(model).__name__}: it must return an nn.Module")
    return model
