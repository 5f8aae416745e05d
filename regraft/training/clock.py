"""The time that training takes."""

from __future__ import annotations

import time


class Clock:
    """Seconds spent inside `with clock:`, and whether `save_every` of them have passed since the last save."""

    def __init__(self, save_every: float) -> None:
        self._save_every = save_every
        self._done = self._waited = 0.0
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        return self._done + (0.0 if self._start is None else time.perf_counter() - self._start)

    @seconds.setter
    def seconds(self, done: float) -> None:
        self._done = self._waited = done

    @property
    def due(self) -> bool:
        return self.seconds - self._waited >= self._save_every

    def begin_wait(self) -> None:
        self._waited = self.seconds

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._done, self._start = self.seconds, None
