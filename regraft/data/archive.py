"""Data sets as their authors publish them: where their files should lie, and what is wrong with those that do not."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.errors import DataError

SHOWN = 5  # names of a folder in a message

SIGNS = {
    "data_batch_1.bin": "CIFAR-10, the binary version",
    "data_batch_1": "CIFAR-10, the Python version (pickles)",
    "data_batch_1.mat": "CIFAR-10, the Matlab version",
    "cifar-10-batches-bin": "CIFAR-10, the binary version",
    "cifar-10-batches-py": "CIFAR-10, the Python version (pickles)",
    "cifar-10-batches-mat": "CIFAR-10, the Matlab version",
    "train.bin": "CIFAR-100, the binary version",
    "meta": "CIFAR-100, the Python version (pickles)",
    "train.mat": "CIFAR-100, the Matlab version",
    "cifar-100-binary": "CIFAR-100, the binary version",
    "cifar-100-python": "CIFAR-100, the Python version (pickles)",
    "cifar-100-matlab": "CIFAR-100, the Matlab version",
    "cifar-10-binary.tar.gz": "CIFAR-10, not unpacked yet",
    "cifar-100-binary.tar.gz": "CIFAR-100, not unpacked yet",
    "train-images-idx3-ubyte": "MNIST, which is images, not events",
    "N-MNIST": "N-MNIST",
    "Train": "N-MNIST",
    "Train.zip": "N-MNIST, not unpacked yet",
}
"""Names that tell one data set, or one version of it, from another."""


@dataclass(frozen=True)
class Member:
    """A file of a fixed size and, where its authors or others publish one, a fixed md5."""

    size: int
    md5: str | None = None


@dataclass(frozen=True)
class Archive:
    """A data set on disk: `folder` is what the archive at `url` unpacks to, `members` are the files in it by name.

    `get` says what to do, where "download and unpack" is not all.
    """

    title: str
    folder: str
    url: str
    members: Mapping[str, Member]
    get: str = "get {url} and unpack it in {root}"

    def advice(self, root: Path) -> str:
        """What to do about missing or damaged files."""
        return f"{self.get.format(url=self.url, root=root)}, or say where it lies with data.folder or REGRAFT_DATA"


def root_of(folder: str | Path | None) -> Path:
    """The folder of all data sets: as given, or REGRAFT_DATA of the environment, or `data`."""
    return Path(folder or os.environ.get("REGRAFT_DATA") or "data")


def read(archive: Archive, name: str, root: Path) -> np.ndarray:
    """The bytes of one member, its size and md5 checked: `[size]` uint8.

    Raises `DataError` that says where it looked, what is there, and what to do.
    """
    member = archive.members[name]
    check_size(archive, name, root)
    path = root / archive.folder / name
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if len(content) != member.size:
        raise DataError(f"{path} changed while it was read: start again")
    if member.md5 and hashlib.md5(content.data, usedforsecurity=False).hexdigest() != member.md5:
        raise DataError(f"{path} is damaged (its md5 is not {member.md5}): {archive.advice(root)}")
    return content


def check_size(archive: Archive, name: str, root: Path) -> None:
    """Raise `DataError` unless the member is a file of its size; reads nothing."""
    path, size = root / archive.folder / name, archive.members[name].size
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise missing(archive, path, root) from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} should be a file of {archive.title}, but it is none: {archive.advice(root)}")
    if found.st_size != size:
        what = "truncated" if found.st_size < size else "too long, or of another data set"
        raise DataError(f"{path} is {what}: {found.st_size:,} bytes, not {size:,}: {archive.advice(root)}")


def missing(archive: Archive, path: Path, root: Path) -> DataError:
    """The error for a file or folder that is not there, with what is there instead."""
    inside, outside = names_in(root / archive.folder), names_in(root)
    place, names = (root / archive.folder, inside) if inside is not None else (root, outside)
    found = f"no folder {root.absolute()}" if names is None else f"in {place}: {_some(names)}"
    signs = {SIGNS[name] for name in [*(inside or []), *(outside or [])] if name in SIGNS}
    others = sorted(sign for sign in signs if sign != archive.title)
    if others:
        found += f"; that is {' and '.join(others)}"
    if set(outside or []) & set(archive.members):
        found += f"; name the folder that holds {archive.folder}, not {archive.folder} itself"
    return DataError(f"{archive.title}: there is no {path} (found {found}): {archive.advice(root)}")


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that is there and cannot be read."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DataError(f"cannot read {str(path)[:300]!r}: {reason}")


def names_in(folder: Path) -> list[str] | None:
    """Names in a folder, sorted; None if there is no folder that can be read."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    shown = [name if name.isprintable() else ascii(name) for name in names[:SHOWN]]
    return (", ".join(shown) or "nothing") + more
