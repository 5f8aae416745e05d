"""Ctrl-C and SIGTERM: the run finishes its step, saves, and says how to go on. A second one ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from regraft.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 1.0  # seconds; `timeout` and some schedulers send one request to a process and to its group, so it comes twice


class _AtOnce(KeyboardInterrupt):
    """Raised by a signal wherever the code stands, so no `except Exception` on its way may take it for a failure."""


class Stop:
    """A context in which the two signals only leave a note (`asked`), to be looked at between steps.

    Outside the main thread signals cannot be caught: there it notes nothing.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._since = 0.0
        self._idle = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def saved(self) -> Iterator[None]:
        """Within, everything is on disk that cannot be made again: a signal raises `Interrupted` at once."""
        if self.asked is not None:
            raise Interrupted(self.asked)
        try:
            self._idle = True
            try:
                yield
            finally:
                self._idle = False
        except _AtOnce:
            raise Interrupted(self.asked or signal.SIGTERM) from None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is not None:
            if time.monotonic() - self._since < AGAIN:
                return
            raise KeyboardInterrupt
        self.asked, self._since = number, time.monotonic()
        if self._idle:
            raise _AtOnce
