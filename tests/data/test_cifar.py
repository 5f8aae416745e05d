"""CIFAR from official-format files: every byte where it belongs, and nothing read that is not what it should be."""

from __future__ import annotations

import numpy as np
import pytest

from regraft import data
from regraft.data.archive import read
from regraft.data.cifar import CIFAR10, CIFAR100, cifar10, cifar100, images
from regraft.data.registry import FACTS
from regraft.errors import DataError, UsageError


@pytest.mark.parametrize(("classes", "label"), [(10, 0), (100, 1)])
def test_labels_and_planes_are_where_the_format_puts_them(tiny_cifar, tmp_path, classes, label):
    layout, contents = tiny_cifar(classes)
    for split, names in layout.splits.items():
        x, y = images(layout, split, tmp_path)
        records = [record for name in names for record in contents[name]]
        assert (x.shape, x.dtype) == ((len(records), 3, 32, 32), np.uint8)
        assert (y.shape, y.dtype) == ((len(records),), np.int64)
        for image, found, record in zip(x, y, records, strict=True):
            assert found == record[label]
            for channel, row, column in ((0, 0, 0), (0, 1, 0), (1, 0, 31), (2, 31, 30)):
                assert image[channel, row, column] == record[label + 1 + channel * 1024 + row * 32 + column]


def test_the_real_layouts_are_those_of_the_publisher():
    """Sizes from https://www.cs.toronto.edu/~kriz/cifar.html: records of 3,073 and 3,074 bytes."""
    sizes = {name: member.size for name, member in CIFAR10.archive.members.items()}
    assert sizes == dict.fromkeys([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"], 10_000 * 3073)
    sizes = {name: member.size for name, member in CIFAR100.archive.members.items()}
    assert sizes == {"train.bin": 50_000 * 3074, "test.bin": 10_000 * 3074}
    hashes = [m.md5 for layout in (CIFAR10, CIFAR100) for m in layout.archive.members.values()]
    assert len(set(hashes)) == 8
    for name in ("cifar10", "cifar100"):
        facts = FACTS[name]
        assert len(set(facts.names)) == facts.classes == int(name.removeprefix("cifar"))
        assert list(facts.names) == sorted(facts.names), "both sets number their classes by the alphabet"


def test_a_set_is_loaded_by_its_name_as_bytes_with_its_constants(tiny_cifar, tmp_path, monkeypatch):
    layout, _ = tiny_cifar(100, records=30)
    monkeypatch.setattr("regraft.data.cifar.CIFAR100", layout)
    monkeypatch.setenv("REGRAFT_DATA", str(tmp_path))
    found = data.load("cifar100", validation=0)
    assert (found.classes, found.form.channels, found.form.size, found.form.static) == (100, 3, 32, True)
    assert str(found.train.x.dtype) == "torch.uint8"
    assert found.names[99] == "worm"
    assert found.augmentation == data.Augmentation(crop=4, flip=True)
    x, _ = next(data.plain_batches(found.train, 30))
    pixels = found.train.x.double()
    means, stds = np.array([129.304, 124.070, 112.434]), np.array([68.170, 65.392, 70.418])
    wanted = (pixels.numpy() - means[:, None, None]) / stds[:, None, None]
    assert np.allclose(x.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("function", [cifar10, cifar100])
def test_nothing_there_says_where_it_looked_and_where_to_get_it(function, tmp_path, monkeypatch):
    name = "cifar-10" if function is cifar10 else "cifar-100"
    with pytest.raises(DataError) as error:
        function("train", folder=tmp_path / "nowhere")
    for part in (f"nowhere/{name}-", f"no folder {tmp_path}/nowhere", f"kriz/{name}-binary.tar.gz", "REGRAFT_DATA"):
        assert part in str(error.value)
    monkeypatch.delenv("REGRAFT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no data/cifar"):
        function("test")
    with pytest.raises(UsageError, match="split is 'valid': give one of train, test"):
        function("valid")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"cifar-100-python/train": b"pickle"}, r"cifar-100-python; that is CIFAR-100, the Python version \(pickles\)"),
        ({"cifar-100-binary/meta": b"pickle"}, r"CIFAR-100, the Python version \(pickles\)\).*: get https"),
        ({"cifar-10-batches-bin/data_batch_1.bin": b"1"}, "that is CIFAR-10, the binary version"),
        ({"cifar-100-binary/data_batch_1.bin": b"1"}, "that is CIFAR-10, the binary version"),
        ({"cifar-100-binary.tar.gz": b"1"}, "that is CIFAR-100, not unpacked yet"),
        ({"cifar-100-binary/x": b""}, "found in .*cifar-100-binary: x"),
        ({f"cifar-100-binary/{i}": b"" for i in range(99)}, "0, 1, 10, 11, 12 and 94 more"),
        (
            {"train.bin": b"", "test.bin": b""},
            "the folder that holds cifar-100-binary, not cifar-100-binary itself",
        ),
        ({"cifar-100-binary": b"a file"}, r"there is no .*train\.bin"),
        ({"cifar-100-binary/train.bin/x": b""}, "should be a file of CIFAR-100, the binary version, but it is none"),
        ({"cifar-100-binary/train.bin": b""}, "train.bin is truncated: 0 bytes, not 153,700,000"),
        ({"cifar-100-binary/train.bin": b"1" * 3074}, "truncated: 3,074 bytes, not 153,700,000: get https"),
    ],
)
def test_what_is_there_instead_is_named(tmp_path, there, message):
    for name, content in there.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        cifar100("train", folder=tmp_path)
    assert "\n" not in str(error.value)


def test_files_of_the_right_size_that_are_wrong_are_refused(tiny_cifar, tmp_path):
    layout, _ = tiny_cifar(10)
    folder = tmp_path / layout.archive.folder
    first, second = folder / "data_batch_1.bin", folder / "data_batch_2.bin"
    good, other = first.read_bytes(), second.read_bytes()
    for content, message in (
        (good[:-1] + bytes([good[-1] ^ 1]), "data_batch_1.bin is damaged .its md5 is not"),
        (other, "damaged"),
        (good[:-1], "data_batch_1.bin is truncated"),
        (good + b"1", "too long, or of another data set: 12,293 bytes, not 12,292"),
    ):
        first.write_bytes(content)
        with pytest.raises(DataError, match=message):
            images(layout, "train", tmp_path)
    first.write_bytes(good)
    images(layout, "train", tmp_path)

    layout, _ = tiny_cifar(10, hashes=False)
    first.write_bytes(b"\x0a" + good[1:])
    with pytest.raises(DataError, match="a label is 10, and 10 classes are known"):
        images(layout, "train", tmp_path)


def test_a_member_is_read_as_it_is(archive, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "a.bin").write_bytes(b"abcd")
    (tmp_path / "tiny" / "b.bin").write_bytes(b"xy")
    assert read(archive, "a.bin", tmp_path).tobytes() == b"abcd"
    assert read(archive, "b.bin", tmp_path).tobytes() == b"xy"
