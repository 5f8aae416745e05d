"""N-MNIST from official-format files: any subset, in the order of MNIST, each event where and when it happened."""

from __future__ import annotations

import os

import numpy as np
import pytest

from regraft import data
from regraft.data import nmnist as module
from regraft.data.nmnist import nmnist
from regraft.errors import DataError, UsageError

LATE = 300_000


def test_each_event_lands_at_its_pixel_step_and_polarity(tiny_nmnist, tmp_path):
    t = [0, 299, 300, 599, 600, 2**16, LATE - 1]
    tiny_nmnist({("Train", 3, "00001"): ([*t, LATE], [33, 0, 1, 2, 3, 4, 5, 6], [0, 33, *range(6)], [1, 0] * 4)})
    x, y = nmnist("train", folder=tmp_path, steps=1000)
    assert (x.shape, x.dtype, y.tolist(), y.dtype) == ((1, 1000, 2, 34, 34), np.uint8, [3], np.int64)
    wanted = np.zeros_like(x)
    steps = [moment * 1000 // (LATE + 1) for moment in [*t, LATE]]
    for step, column, row, polarity in zip(steps, [33, *range(7)], [0, 33, *range(6)], [1, 0] * 4, strict=True):
        wanted[0, step, polarity, row, column] += 1
    assert steps[-1] == 999
    assert np.array_equal(x, wanted)


def test_recordings_come_in_the_order_of_mnist_and_each_is_its_own(tiny_nmnist, tmp_path, monkeypatch):
    places = [("Train", 5, "00001"), ("Train", 0, "00002"), ("Train", 9, "10"), ("Train", 1, "00003")]
    tiny_nmnist(dict.fromkeys([*places, ("Test", 7, "00001")]))
    (tmp_path / "N-MNIST" / "Train" / "0" / "notes.txt").write_text("not a recording")
    x, y = nmnist("train", folder=tmp_path, steps=3)
    assert y.tolist() == [5, 0, 1, 9]
    for index, (split, digit, name) in enumerate([places[0], places[1], places[3], places[2]]):
        alone = tmp_path / str(index)
        tiny_nmnist({(split, digit, name): None}, root=alone)
        assert np.array_equal(nmnist("train", folder=alone, steps=3)[0][0], x[index])
    assert nmnist("test", folder=tmp_path, steps=3)[1].tolist() == [7]
    for chunk in (1, 2, 3):
        monkeypatch.setattr(module, "CHUNK", chunk)
        assert np.array_equal(nmnist("train", folder=tmp_path, steps=3)[0], x)


def test_a_subset_is_loaded_by_name_with_all_ten_classes(tiny_nmnist, tmp_path):
    tiny_nmnist(dict.fromkeys([("Train", 5, "1"), ("Train", 0, "2"), ("Test", 7, "1")]))
    found = data.load("nmnist", validation=0, folder=tmp_path, steps=4)
    assert (found.classes, found.form.channels, found.form.size, found.form.static) == (10, 2, 34, False)
    assert found.train.x.shape == (2, 4, 2, 34, 34)
    x, _ = next(data.plain_batches(found.train, 2))
    assert x.shape == (4, 2, 2, 34, 34)
    assert int(x.sum()) == 120
    by_count = data.load("nmnist", validation=0, folder=tmp_path, steps=4, options={"by": "count"})
    assert by_count.train.x.sum(dim=(2, 3, 4)).unique().tolist() == [15]


def good() -> tuple:
    return [0, LATE], [1, 2], [3, 4], [0, 1]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (([0, LATE], [34, 2], [3, 4], [0, 1]), r"00007\.bin is truncated or damaged: an event at 34, off the 34 x 34"),
        (([0, LATE], [1, 2], [3, 240], [0, 1]), "an event at 240, off"),
        (([0, 150_000], [1, 2], [3, 4], [0, 1]), "its last event is at 150 ms, and recordings last 300 ms"),
        (([], [], [], []), "0 bytes are not a whole number of 5-byte events"),
    ],
)
def test_a_recording_that_cannot_be_one_is_named(tiny_nmnist, tmp_path, events, message):
    tiny_nmnist({("Train", 2, "00006"): good(), ("Train", 2, "00007"): events, ("Train", 2, "00008"): good()})
    with pytest.raises(DataError, match=message):
        nmnist("train", folder=tmp_path)


def test_whatever_else_is_in_the_way_is_named(tiny_nmnist, tmp_path):
    folder = tmp_path / "N-MNIST" / "Train" / "4"
    with pytest.raises(
        DataError, match=r"there is no .*N-MNIST/Train/0/\*\.bin .*get Train\.zip and Test\.zip from https"
    ):
        nmnist("train", folder=tmp_path)
    tiny_nmnist({("Train", 4, "00001"): good()})
    with pytest.raises(DataError, match=r"there is no .*N-MNIST/Test/0/\*\.bin \(found in .*N-MNIST: Train\)"):
        nmnist("test", folder=tmp_path)
    path = folder / "00002.bin"
    path.write_bytes(b"1234567")
    with pytest.raises(DataError, match=r"00002\.bin is truncated or damaged: 7 bytes"):
        nmnist("train", folder=tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"00002\.bin should be a recording, but it is no file"):
        nmnist("train", folder=tmp_path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(DataError, match="it is no file"):
        nmnist("train", folder=tmp_path)
    path.rename(folder / "second.bin")
    with pytest.raises(DataError, match=r"they are called <number>\.bin"):
        nmnist("train", folder=tmp_path)
    with pytest.raises(UsageError, match="split is 'valid'"):
        nmnist("valid", folder=tmp_path)
    for steps in (0, 2.5, 10**9):
        with pytest.raises(UsageError, match=r"steps is .*: give a whole number from 1 to 1024"):
            nmnist("train", folder=tmp_path, steps=steps)
