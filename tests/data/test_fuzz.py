"""Readers on files that went wrong in some way: a result or one clear line, never another exception, never a hang."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from regraft.data.archive import SIGNS
from regraft.data.cifar import images
from regraft.data.nmnist import nmnist
from regraft.data.survey import survey
from regraft.errors import DataError

MUTANTS = [pytest.param(300), pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where the system has such a place: a disk takes ten times as long to make and remove folders."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def clear(path: Path) -> None:
    """Whatever is there, gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damage(path: Path, good: bytes, others: list[bytes], rng: random.Random) -> None:
    """Leave `path` damaged in one of the ways that disks, downloads and people have."""
    clear(path)
    content = bytearray(good)
    match rng.randrange(13):
        case 0:  # truncated
            del content[rng.randrange(len(content)) :]
        case 1:  # some bits flipped
            for _ in range(rng.randint(1, 5)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case 2:  # extended
            content += rng.randbytes(rng.choice([1, 4, 5, 3073, 3074]))
        case 3:  # bytes in another order
            rng.shuffle(content)
        case 4:  # nothing but noise
            content[:] = rng.randbytes(len(content))
        case 5:  # a hole of zeros
            start = rng.randrange(len(content))
            content[start : start + 512] = bytes(len(content[start : start + 512]))
        case 6:  # a piece lost, or twice there
            start, end = sorted(rng.randrange(len(content)) for _ in range(2))
            content[start:end] = rng.choice([b"", content[start:end] * 2])
        case 7:  # another file's content, or a page that says "not found"
            content[:] = rng.choice(
                [*others, b"", b"<html>404</html>", b"\x80\x04\x95pickle", b"version https://git-lfs"]
            )
        case 8:
            return path.mkdir()
        case 9:
            return path.symlink_to(path)
        case 10:
            return path.symlink_to("nowhere")
        case 11:
            return os.mkfifo(path)
        case 12:
            return None  # missing
    path.write_bytes(content)
    return None


def outcome(read):
    """What `read` gives, or None where it says in one line that it cannot; any other exception is the test's."""
    try:
        return read()
    except DataError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert len(message) < 1500
        return None


@pytest.mark.parametrize("mutants", MUTANTS)
@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tiny_cifar, tmp_path, mutants, hashes, classes):
    layout, contents = tiny_cifar(classes, records=1, hashes=hashes)
    folder = tmp_path / layout.archive.folder
    good = {name: content.tobytes() for name, content in contents.items()}
    wanted = images(layout, "train", tmp_path)
    rng, accepted = random.Random(classes + hashes), 0
    for _ in range(mutants):
        name = rng.choice(layout.splits["train"])
        damage(folder / name, good[name], list(good.values()), rng)
        found = outcome(lambda: images(layout, "train", tmp_path))
        if found is not None:
            accepted += 1
            x, y = found
            assert x.shape == wanted[0].shape
            assert 0 <= y.min() <= y.max() < classes
            if hashes:
                assert np.array_equal(x, wanted[0]), "with hashes nothing but the very bytes is accepted"
                assert np.array_equal(y, wanted[1])
        clear(folder / name)
        (folder / name).write_bytes(good[name])
    assert hashes or accepted > mutants // 10, "the mutants are not all alike"
    assert accepted < mutants


@pytest.mark.parametrize("mutants", MUTANTS)
def test_nmnist(tiny_nmnist, tmp_path, mutants):
    places = [("Train", 3, "00001"), ("Train", 0, "00002"), ("Train", 3, "00004")]
    tiny_nmnist(dict.fromkeys(places))
    paths = [tmp_path / "N-MNIST" / split / str(digit) / f"{name}.bin" for split, digit, name in places]
    good = {path: path.read_bytes() for path in paths}
    rng, kinds = random.Random(5), set()
    for _ in range(mutants):
        path = rng.choice(paths)
        damage(path, good[path], list(good.values()), rng)
        if rng.random() < 0.1 and path.is_file():
            path.rename(
                path.with_name(rng.choice(["x.bin", ".bin", "²³.bin", "-1.bin", "1", "9" * 99 + ".bin", "00001.bin"]))
            )
        found = outcome(lambda: nmnist("train", folder=tmp_path, steps=3))
        kinds.add(found is None)
        if found is not None:
            x, y = found
            assert (x.shape[1:], x.dtype, len(x)) == ((3, 2, 34, 34), np.uint8, len(y))
            assert set(y.tolist()) <= {0, 3}
        for digit in (0, 3):
            shutil.rmtree(tmp_path / "N-MNIST" / "Train" / str(digit))
            (tmp_path / "N-MNIST" / "Train" / str(digit)).mkdir()
        for whole, content in good.items():
            whole.write_bytes(content)
    assert kinds == {True, False}


@pytest.mark.parametrize("mutants", MUTANTS)
def test_folders_of_all_kinds(tmp_path, mutants):
    """Names that are known, where they do not belong: as files, folders, links and pipes, some levels deep."""
    rng = random.Random(6)
    names = [*SIGNS, "train.bin", "test.bin", "Test", "0", "1.bin", "data_batch_5.bin", "\udcff", "x" * 200]
    root, seen = tmp_path / "data", set()
    for _ in range(mutants):
        clear(root)
        if rng.random() < 0.95:
            root.mkdir()
            for _ in range(rng.randint(0, 8)):
                path = root.joinpath(*rng.choices(names, k=rng.randint(1, 3)))
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    rng.choice([Path.mkdir, Path.touch, lambda p: p.symlink_to(p), os.mkfifo])(path)
                except OSError:
                    continue
        for row in survey(root):
            seen.add(row.state)
            assert "\n" not in row.advice
            assert bool(row.advice) == (row.state in ("missing", "damaged"))
        for read in (lambda: nmnist("train", folder=root), lambda: nmnist("test", folder=root)):
            assert outcome(read) is None
    assert seen >= {"made", "missing", "damaged"}


@pytest.mark.parametrize("root", ["\0", "x" * 300, "/dev/null", "/dev/null/x", "\udcff", "~"])
def test_places_that_are_none(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {row.state for row in survey(root)} <= {"made", "missing", "found"}
    assert outcome(lambda: nmnist("train", folder=root)) is None
