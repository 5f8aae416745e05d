"""Looking at a network without leaving a trace: eval mode, no gradient, hooks that are gone afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regraft.errors import ShapeError, UsageError

Forward = Callable[[nn.Module, Any], Any]


def plain_forward(model: nn.Module, x: Any) -> Any:
    """`model(x)`: the default wherever a `forward=` is taken."""
    return model(x)


@contextmanager
def observing(model: nn.Module) -> Iterator[list[RemovableHandle]]:
    """Eval mode and no gradient inside; yields a list for hook handles.

    On leaving, also by an exception, every handle in the list is removed and every module is back in the mode it was
    in. `no_grad` rather than inference mode: neurons that keep a state could not be trained with it afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    handles: list[RemovableHandle] = []
    model.eval()
    try:
        with torch.no_grad():
            yield handles
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def batches(model: nn.Module, data: Iterable[Any], limit: int | None = None) -> Iterator[tuple[Any, int]]:
    """`(x, samples)` for each of the first `limit` batches, `x` on the device of the model.

    A batch is `(x, y)`, where `samples = len(y)` (so the time axis of event input `[T, N, ...]` is not mistaken for
    the batch), or `x` alone, where `samples = len(x)`. Raises `UsageError` where there is no batch at all.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}: give a number of batches of at least 1, or None for all")
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device
    seen = 0
    for batch in itertools.islice(data, limit):
        x, y = (batch[0], batch[1]) if isinstance(batch, tuple | list) else (batch, batch)
        seen += 1
        yield (x.to(device) if isinstance(x, Tensor) and device is not None else x), _length(y)
    if not seen:
        raise UsageError("the loader gave no batch: there is nothing to measure")


def _length(y: Any) -> int:
    if isinstance(y, Tensor) and y.dim() == 0:
        raise ShapeError("a batch has a target without an axis: the loader must give batches, not single samples")
    return len(y)


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple or list (neurons that return `spikes, state`)."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None
