"""The processes of one run: `torchrun` starts several, and one process alone is a run of one rank."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regraft.errors import RegraftError, TrainingError

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # a rank may wait that long for the one that measures; a dead one is noticed at once


@dataclass(frozen=True)
class Ranks:
    """This process's number (`rank`) among `world` processes. All methods are collective: every rank calls them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run folder and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`, or around it what averages its gradients over all ranks."""
        if self.world == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def seed_apart(self, seed: int) -> None:
        """Give each rank a stream of its own for dropout; the first keeps the one that a single process has."""
        if not self.first:
            torch.manual_seed(seed + 7_919 * self.rank)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set on any rank."""
        if self.world == 1:
            return flags
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        raised = torch.tensor([int(flag) for flag in flags], device=device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def first_does(self, call: Callable[[], T]) -> T:
        """What `call()` gives on the first rank, on all of them; if it raises a `RegraftError` there, so do all."""
        if self.world == 1:
            return call()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = call()
            except RegraftError as error:
                told[1] = error
        dist.broadcast_object_list(told, 0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def align(self, model: nn.Module) -> None:
        """Give all ranks the first one's buffers: each has taken its statistics of normalisation on its own share."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that `torchrun` started together (gloo on processors, nccl on GPUs), or this one alone.

    Raises `TrainingError` in place of torch's own error when another process of the run is gone.
    """
    if dist.is_available() and dist.is_initialized():  # by the caller, or by the run whose teacher this is
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
        yield Ranks()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if isinstance(error, RegraftError) or not _tells_of_a_lost_rank(error):
            raise
        # The launcher now ends all processes: what is said below must come first.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise TrainingError(
            f"another process of this run has ended, so rank {os.environ.get('RANK')} stops too "
            f"({_first_line(error)}). What was saved is whole: start all processes again with --resume"
        ) from None
    finally:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def speaks() -> bool:
    """Whether this process prints for the run; known before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


def weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    """Their mean."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _tells_of_a_lost_rank(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(w in text for w in ("gloo", "nccl", "connection", "peer", "socket"))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
