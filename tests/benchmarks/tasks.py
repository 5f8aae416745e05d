"""Tasks for the workers of `test_rounds.py`: a worker imports them by name."""

from __future__ import annotations

import os
import resource
import time

import torch


class Faults:
    """A step takes and gives back 100 MB; `minor` is the fewest page faults of some, since memory settles first."""

    def step(self) -> None:
        torch.ones(25_000_000)

    def losses(self, steps: int) -> list[float]:
        return [float(step) for step in range(steps)]

    def minor(self) -> int:
        found = []
        for _ in range(4):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            self.step()
            found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return min(found)

    def threads(self) -> int:
        return torch.get_num_threads()


class Endless(Faults):
    def step(self) -> None:
        time.sleep(600)


class Killed(Faults):
    def losses(self, steps: int) -> list[float]:
        os._exit(3)


def absent() -> Faults:
    import nothing_of_this_name  # noqa: F401  # pyright: ignore[reportMissingImports]

    return Faults()
