"""Where a training stands, as tensors and plain values, so that it can be saved and gone on with to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from regraft.errors import RegraftError, RunError, UsageError
from regraft.training.build import Parts
from regraft.training.load import WIRING, network_state
from regraft.training.ranks import Ranks


@dataclass
class Position:
    """Where the loop stands, between two optimiser steps.

    `epoch` is counted from 1, `index` is the next batch of it, `step` the optimiser steps taken; `best` the best
    accuracy on the validation split so far, `seconds` the time of training, `log_bytes` the length of the log,
    `silent` the layers that were warned of.
    """

    epoch: int = 1
    index: int = 0
    step: int = 0
    best: float = -1.0
    seconds: float = 0.0
    log_bytes: int = 0
    silent: list[str] = field(default_factory=list)


def capture(parts: Parts, at: Position, sums: Tensor | None, ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a checkpoint. Collective: each rank adds its random state and what else is its own."""
    tensors, manifest = network_state(parts.model, parts.topology)
    optimizer = parts.optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, state in optimizer["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    for rank, own in enumerate(ranks.gather(_own(parts, sums))):
        tensors |= {f"rank{rank}/{name}": t for name, t in own.items()}
    return tensors, {
        **manifest,
        "position": asdict(at),
        "optimizer": {"groups": optimizer["param_groups"], "scalars": scalars},
        "schedule": parts.schedule.state_dict(),
        "world": ranks.world,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def restore(
    parts: Parts, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], ranks: Ranks
) -> tuple[Position, Tensor | None]:
    """Put `parts` and the random state where they stood; returns the position, and the sums of the epoch so far.

    Raises `RunError` if the checkpoint is of another network or version, `UsageError` if of more or fewer processes.
    """
    if manifest.get("world") != ranks.world:
        raise UsageError(
            f"the run was begun by {manifest.get('world')} processes, not {ranks.world}: go on with as many "
            f"(torchrun --nproc-per-node {manifest.get('world')} -m regraft ...), for its bits depend on it"
        )
    try:
        kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("model", "optimizer", *WIRING)}
        own: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind == f"rank{ranks.rank}":
                own[name] = tensor
            elif kind in kinds:
                kinds[kind][name] = tensor
        parts.model.load_state_dict(kinds.pop("model"))
        parts.optimizer.load_state_dict(_optimizer_state(kinds.pop("optimizer"), manifest["optimizer"]))
        parts.schedule.load_state_dict(dict(manifest["schedule"]))
        parts.topology.load_state_dict({**manifest["topology"], **kinds})
        taught = {name.removeprefix("teacher/"): t for name, t in own.items() if name.startswith("teacher/")}
        parts.criterion.load_state_dict(taught)
        torch.set_rng_state(own["random"])
        if "random_cuda" in own:
            torch.cuda.set_rng_state(own["random_cuda"])
        return Position(**manifest["position"]), own.get("sums")
    except (RegraftError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunError(f"the checkpoint does not fit this recipe and this version of regraft ({error})") from None


def same_threads(manifest: Mapping[str, Any]) -> None:
    """Compute with as many threads as before: sums are split among them, so their number is part of the bits."""
    saved = manifest.get("threads")
    if isinstance(saved, int) and saved > 0 and saved != torch.get_num_threads():
        warnings.warn(f"going on with {saved} threads, as the run was begun, so that its bits stay", stacklevel=2)
        torch.set_num_threads(saved)


def _own(parts: Parts, sums: Tensor | None) -> dict[str, Tensor]:
    """What differs from rank to rank: random state, a moving teacher's statistics, the sums of the epoch."""
    own = {"random": torch.get_rng_state()}
    if next(parts.model.parameters()).is_cuda:
        own["random_cuda"] = torch.cuda.get_rng_state()
    own |= {f"teacher/{name}": t.detach().cpu() for name, t in parts.criterion.state_dict().items()}
    return own if sums is None else {**own, "sums": sums.cpu()}


def _optimizer_state(tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in saved["scalars"].items()}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": [dict(group) for group in saved["groups"]]}
