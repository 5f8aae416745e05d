"""Whether somebody looks at a module, so that it must be called itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn


class Replaced:
    """A `forward` that this package has put in a module's place; any other is somebody else's."""


def hooked(module: nn.Module) -> bool:
    """Whether it matters that the module itself is called: for its hooks, or a `forward` that somebody gave it."""
    forward = vars(module).get("forward")
    return bool(
        (forward is not None and not isinstance(forward, Replaced))
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def original(what: Any) -> Any:
    """What computes a call by itself: of a module whose own `forward` was replaced, its class's."""
    if isinstance(what, nn.Module) and isinstance(vars(what).get("forward"), Replaced):
        return partial(type(what).forward, what)
    return what


def looked_at() -> bool:
    """Whether a hook looks at the modules of all networks."""
    return bool(torch.nn.modules.module._has_any_global_hook())
