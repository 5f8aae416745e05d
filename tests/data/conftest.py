"""Small files in the official formats: tests need no download."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from regraft.data.archive import Archive, Member
from regraft.data.cifar import CIFAR10, CIFAR100, Layout


@pytest.fixture
def tiny_cifar(tmp_path):
    """`tiny_cifar(100, root=..., records=4, hashes=True)`: files as the archive unpacks them, and their layout."""

    def write(classes: int, root=tmp_path, records: int = 4, hashes: bool = True) -> tuple[Layout, dict]:
        real = {10: CIFAR10, 100: CIFAR100}[classes]
        rng = np.random.default_rng(classes)
        folder = root / real.archive.folder
        folder.mkdir(parents=True, exist_ok=True)
        members, contents = {}, {}
        for name in real.archive.members:
            labels = [rng.integers(0, known, (records, 1)) for known in real.labels]
            content = np.concatenate([*labels, rng.integers(0, 256, (records, 3072))], axis=1).astype(np.uint8)
            (folder / name).write_bytes(content.tobytes())
            digest = hashlib.md5(content.tobytes()).hexdigest() if hashes else None
            members[name], contents[name] = Member(content.size, digest), content
        return replace(real, archive=replace(real.archive, members=members)), contents

    return write


def events_bytes(t, x, y, p) -> bytes:
    """Events in the format of N-MNIST, written one by one."""
    return b"".join(
        bytes([int(c), int(r), int(s) << 7 | int(m) >> 16 & 127, int(m) >> 8 & 255, int(m) & 255])
        for m, c, r, s in zip(t, x, y, p, strict=True)
    )


@pytest.fixture
def tiny_nmnist(tmp_path):
    """`tiny_nmnist(root, {("Train", 3, "00007"): events})`; a seeded recording of 60 events where events are None."""

    def write(files: dict, root=tmp_path) -> dict:
        written = {}
        for place, given in files.items():
            split, digit, name = place
            events = given
            if events is None:
                rng = np.random.default_rng([digit, *name.encode()])
                t = np.sort(rng.integers(0, 300_000, 60))
                t[-1] = 300_000
                events = t, rng.integers(0, 34, 60), rng.integers(0, 34, 60), rng.integers(0, 2, 60)
            folder = root / "N-MNIST" / split / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.bin").write_bytes(events_bytes(*events))
            written[place] = events
        return written

    return write


@pytest.fixture
def archive():
    """An archive of two small files."""
    members = {"a.bin": Member(4, hashlib.md5(b"abcd").hexdigest()), "b.bin": Member(2)}
    return Archive("Tiny", "tiny", "https://example.org/tiny.tar.gz", members)
