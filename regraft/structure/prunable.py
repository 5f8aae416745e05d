"""Which tensors of a model can lose connections, chosen by type and by name pattern."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from regraft.errors import StructureError, UsageError


def matching(model: nn.Module, patterns: Sequence[str], role: str, among: Collection[str]) -> set[str]:
    """Those `among` the parameters whose name, or whose layer's, fits a shell pattern (`features.0`, `*.qkv.weight`).

    A tensor under several names fits by any of them, and is called by its first.

    Raises `UsageError` for a pattern that fits none; `role` is the argument that it was given as.
    """
    first = {id(p): name for name, p in model.named_parameters()}
    names = [(name, first[id(p)]) for name, p in model.named_parameters(remove_duplicate=False)]
    found = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fits = {of for name, of in names if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)}
        if fits.isdisjoint(among):
            raise UsageError(f"{role} pattern {pattern!r} fits none of {', '.join(among) or 'no parameters'}")
        found |= fits.intersection(among)
    return found


def prunable(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The tensors whose connections are learnt: weights of Linear and Conv layers, and what `include` adds.

    A tensor under two names appears once, under its first. Biases and normalisation are never among them.

    Args:
        include: patterns of further parameters with two or more axes (attention, recurrent weights).
        exclude: patterns of parameters or layers to leave alone.

    Raises:
        UsageError: a pattern that fits nothing, or fits a parameter with fewer than two axes.
        StructureError: nothing prunable, or sharded parameters.
    """
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if isinstance(p, nn.UninitializedParameter):
            raise StructureError(f"{name!r} has no shape yet (a lazy layer): run one batch through the model first")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module.weight, nn.Parameter):
            warnings.warn(
                f"the weight of {name!r} is computed from others (weight_norm or the like), so it has no "
                f"connections of its own: it stays dense and is not counted. Remove the parametrisation to prune it",
                stacklevel=3,
            )
    first = {id(p): name for name, p in parameters.items()}
    weights = {
        first[id(m.weight)] for m in model.modules() if isinstance(m, nn.Linear | _ConvNd) and id(m.weight) in first
    }
    frozen = {name for name in weights if not parameters[name].requires_grad}
    if frozen:
        warnings.warn(
            f"{', '.join(sorted(frozen))} is frozen (requires_grad=False), so it is left alone and not counted; "
            f"name it with include= to prune it all the same",
            stacklevel=3,
        )
    weights -= frozen
    weights |= matching(model, include, "include", [name for name, p in parameters.items() if p.ndim >= 2])
    weights -= matching(model, exclude, "exclude", parameters)
    chosen = {name: p for name, p in parameters.items() if name in weights}
    if not chosen:
        hint = "check `exclude`" if exclude else "it has no Linear or Conv layer; name parameters with `include`"
        raise StructureError(f"{type(model).__name__} has no prunable weight: {hint}")
    for name, p in chosen.items():
        if not p.numel():
            raise StructureError(f"{name!r} has shape {tuple(p.shape)}, so there is nothing to connect")
        if type(p.data).__name__ == "DTensor":
            raise StructureError(
                f"{name!r} is sharded (FSDP): its mask would differ over ranks. Use DistributedDataParallel"
            )
    return chosen
