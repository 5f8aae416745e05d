"""Which tensors of a model can lose connections, chosen by type and by name pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from regraft.errors import StructureError, UsageError


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name, or its layer's, fits one of the shell patterns (`features.0`, `*.qkv.weight`)."""
    layer = name.rpartition(".")[0]
    return any(fnmatchcase(name, p) or fnmatchcase(layer, p) for p in patterns)


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
    for pattern in (*include, *exclude):
        if not any(matches(name, [pattern]) for name in parameters):
            raise UsageError(
                f"pattern {pattern!r} fits no parameter. Names look like {next(iter(parameters), 'none')!r}"
            )
    names = {id(p): name for name, p in reversed(parameters.items())}
    weights = {
        names[id(m.weight)] for m in model.modules() if isinstance(m, nn.Linear | _ConvNd) and id(m.weight) in names
    }
    for name, p in parameters.items():
        if include and matches(name, include):
            if p.ndim < 2 and matches(name, [i for i in include if i == name]):
                raise UsageError(
                    f"parameter {name!r} has {p.ndim} axes: only tensors with two or more have connections"
                )
            weights |= {name} if p.ndim >= 2 else set()
    chosen = {name: p for name, p in parameters.items() if name in weights and not matches(name, exclude)}
    if not chosen:
        hint = "check `exclude`" if weights else "it has no Linear or Conv layer; name parameters with `include`"
        raise StructureError(f"{type(model).__name__} has no prunable weight: {hint}")
    for name, p in chosen.items():
        if type(p).__name__ == "UninitializedParameter":
            raise StructureError(f"{name!r} has no shape yet (a lazy layer): run one batch through the model first")
        if type(p.data).__name__ == "DTensor":
            raise StructureError(
                f"{name!r} is sharded (FSDP): its mask would differ over ranks. Use DistributedDataParallel"
            )
    return chosen
