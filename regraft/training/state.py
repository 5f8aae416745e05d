"""Where a training stands, as tensors and plain values, so that it can be saved and gone on with to the bit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from regraft.errors import RegraftError, RunError, UsageError
from regraft.execution import described
from regraft.structure import Event
from regraft.training.build import Parts, Precision
from regraft.training.load import WIRING, network_state
from regraft.training.ranks import Ranks
from regraft.training.values import hints

THREADS = 4096  # more than any machine has; with far more the system's thread library ends the process
_UNFIT = "the checkpoint does not fit this recipe and this version of regraft"
_MISFITS = (
    *(RegraftError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError),
    TypeCheckError,
)
_MOVING = ("lr", "_last_lr", "last_epoch", "_step_count", "_get_lr_called_within_step", "_is_initial")  # torch's names


@dataclass
class Position:
    """Where the loop stands, between two optimiser steps.

    `epoch` is counted from 1, `index` is the next batch of it, `step` the optimiser steps taken; `best` the best
    accuracy on the validation split so far, `seconds` the time of training, `log_bytes` and `log_sha256` the log,
    `silent` the layers that were warned of.
    """

    epoch: int = 1
    index: int = 0
    step: int = 0
    best: float = -1.0
    seconds: float = 0.0
    log_bytes: int = 0
    log_sha256: str = ""
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
        "precision": parts.precision,
        "calibration": described(parts.execution.calibration),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def restore(
    parts: Parts, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], ranks: Ranks
) -> tuple[Position, Tensor | None]:
    """Put `parts` and the random state where they stood; returns the position, and the sums of the epoch so far.

    Raises `RunError` if the checkpoint is of another network or version, `UsageError` if of more or fewer processes.
    """
    if not isinstance(manifest.get("world"), int):
        raise RunError(f"{_UNFIT} (it does not say how many processes saved it)")
    if manifest["world"] != ranks.world:
        raise UsageError(
            f"the run was begun by {manifest['world']} processes, not {ranks.world}: go on with as many "
            f"(torchrun --nproc-per-node {manifest['world']} -m regraft ...), for its bits depend on it"
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
        at = _position(manifest["position"], manifest["topology"])
        _check_memory(kinds)
        parts.model.load_state_dict(kinds.pop("model"))
        state = _optimizer_state(kinds.pop("optimizer"), manifest["optimizer"])
        _check_alike(state["param_groups"], parts.optimizer.state_dict()["param_groups"], "optimizer")
        parts.optimizer.load_state_dict(state)
        _check_optimizer(parts.optimizer)
        _check_alike(manifest["schedule"], parts.schedule.state_dict(), "schedule")
        parts.schedule.load_state_dict(dict(manifest["schedule"]))
        if parts.schedule.last_epoch != at.step:
            raise ValueError(f"the schedule stands at {parts.schedule.last_epoch}, the rest at {at.step}")
        parts.topology.load_state_dict({**manifest["topology"], **kinds})
        taught = {name.removeprefix("teacher/"): t for name, t in own.items() if name.startswith("teacher/")}
        parts.criterion.load_state_dict(taught)
        torch.set_rng_state(own["random"])
        if "random_cuda" in own:
            torch.cuda.set_rng_state(own["random_cuda"])
        return at, own.get("sums")
    except _MISFITS as error:
        raise RunError(f"{_UNFIT} ({error})") from None


def _position(saved: Mapping[str, Any], wiring: Mapping[str, Any]) -> Position:
    """Where the loop stood. What is wrong here would otherwise show in the middle of training, or never."""
    at = Position(**saved)
    _check_types(asdict(at), Position)
    for event in wiring["events"]:
        _check_types(event, Event)
    if min(at.epoch - 1, at.index, at.step, at.log_bytes, at.seconds) < 0 or wiring["step"] != at.step:
        raise ValueError(f"it stands nowhere: {at}")
    return at


def _check_types(values: Mapping[str, Any], kind: type) -> None:
    for name, hint in hints(kind).items():
        check_type(values[name], hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        if isinstance(values[name], bool) or (isinstance(values[name], float) and not math.isfinite(values[name])):
            raise TypeError(f"{name} is {values[name]}")


def _check_alike(saved: Any, like: Any, where: str) -> None:
    """Raise unless `saved` is `like`, a setting that the recipe gives; what moves with the steps has its type."""
    if isinstance(like, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != like.keys():
            raise TypeError(f"{where} has other entries")
        for key, value in like.items():
            _check_alike(saved[key], value, f"{where}.{key}")
    elif isinstance(like, list | tuple):
        if not isinstance(saved, list | tuple) or len(saved) != len(like):
            raise TypeError(f"{where} has another length")
        for one, value in zip(saved, like, strict=True):
            _check_alike(one, value, where)
    elif isinstance(like, float):
        if type(saved) not in (int, float) or not math.isfinite(saved):
            raise TypeError(f"{where} is {saved!r}")
    elif type(saved) is not type(like):
        raise TypeError(f"{where} is {saved!r}")
    if isinstance(like, int | float) and saved != like and where.rpartition(".")[2] not in _MOVING:
        raise ValueError(f"{where} is {saved!r}, here it is {like!r}")


def _check_memory(kinds: Mapping[str, Mapping[str, Tensor]]) -> None:
    """The gradients that wiring remembers are as large as the layers they are of."""
    for kind in ("saliency", "average"):
        for name, tensor in kinds[kind].items():
            if tensor.shape != kinds["masks"][name].shape or not tensor.is_floating_point():
                raise ValueError(f"{kind} of {name} is {tensor.dtype} {list(tensor.shape)}")


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Each parameter has the same entries, and an entry is a number for all of them or as large as each is itself."""
    entries = {frozenset(state) for state in optimizer.state.values()}
    if len(entries) > 1 or not all(isinstance(parameter, Tensor) for parameter in optimizer.state):
        raise ValueError("what the optimiser keeps is not the same for all parameters")
    for key in next(iter(entries), ()):
        shapes = {parameter: getattr(state[key], "shape", None) for parameter, state in optimizer.state.items()}
        numbers = set(shapes.values()) in ({None}, {torch.Size([])})
        if not numbers and any(shape != parameter.shape for parameter, shape in shapes.items()):
            raise ValueError(f"{key} of the optimiser is not as large as what it is of")
        values = [state[key] for state in optimizer.state.values() if state[key] is not None]
        if numbers and not all(not torch.is_tensor(v) or v.is_floating_point() for v in values):
            raise ValueError(f"{key} of the optimiser is no real number")
        if numbers and not all(0 <= float(value) < math.inf for value in values):
            raise ValueError(f"{key} of the optimiser is no count")


def same_threads(manifest: Mapping[str, Any]) -> None:
    """Compute with as many threads as before: sums are split among them, so their number is part of the bits.

    Raises `RunError` if the checkpoint does not say how many.
    """
    saved = manifest.get("threads")
    if type(saved) is not int or not 0 < saved <= THREADS:
        raise RunError(f"{_UNFIT} (it was saved with {saved!r} threads)")
    if saved != torch.get_num_threads():
        warnings.warn(f"going on with {saved} threads, as the run was begun, so that its bits stay", stacklevel=2)
        torch.set_num_threads(saved)


def same_precision(manifest: Mapping[str, Any]) -> Precision:
    """The arithmetic that the run was begun in, whatever `auto` would mean here. Raises `RunError` without one."""
    saved: Any = manifest.get("precision")
    if saved not in get_args(Precision):
        raise RunError(f"{_UNFIT} (it was saved in precision {saved!r})")
    return saved


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
