"""Ctrl-C and SIGTERM: the run finishes its step, saves, and says how to go on. A second one ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from regraft.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """A context in which the two signals only leave a note (`asked`), to be looked at between steps.

    Outside the main thread signals cannot be caught: there it notes nothing.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
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
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        if self._idle:
            raise Interrupted(number)
