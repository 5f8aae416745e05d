"""The one family of exceptions. Each message says what is wrong, where, and what to do about it.

Everything that a user can cause raises a `RegraftError`; anything else that escapes is a bug of ours.
The command line maps `UsageError` to exit code 2 and every other member to exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RegraftError(Exception):
    """Base of everything that regraft raises on purpose."""


class UsageError(RegraftError, ValueError):
    """A setting, name or argument that cannot be meant."""


class ShapeError(RegraftError, ValueError):
    """Tensors that do not fit each other or the model."""


class StructureError(RegraftError, RuntimeError):
    """A wiring that cannot be built, kept or restored."""


class OptimizerError(StructureError):
    """An optimiser whose state cannot follow the wiring."""


class TrainingError(RegraftError, RuntimeError):
    """A run that cannot go on, for example because the loss is not finite."""


class RunError(RegraftError, RuntimeError):
    """A run folder that is missing, damaged or of another version."""


class Interrupted(RegraftError):
    """Somebody asked a training to stop (`signal`: SIGINT or SIGTERM), and it has saved where it stands."""

    def __init__(self, signal: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str]]:
        return Interrupted, (self.signal, str(self))


class DataError(RegraftError, RuntimeError):
    """Files of a data set that are missing, damaged, or of another one."""


class MissingExtraError(RegraftError, ImportError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed. Run: pip install 'regraft[{extra}]'")
        self._given = (package, extra, purpose)

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return MissingExtraError, self._given


class SilentLayerWarning(UserWarning):
    """A layer of neurons that never fires: nothing behind it can learn."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `name`: the closest known one first, then all of them.

    >>> nearest("rgil", ["set", "rigl"])
    "did you mean 'rigl'? Known: rigl, set"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}"
