"""`regraft data`: what is there, what is in it, and what it looks like."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def recordings(here, monkeypatch):
    """Three recordings of N-MNIST in `data/`."""
    monkeypatch.delenv("REGRAFT_DATA", raising=False)
    for number, (split, digit) in enumerate([("Train", 3), ("Train", 8), ("Test", 3)]):
        folder = here / "data" / "N-MNIST" / split / str(digit)
        folder.mkdir(parents=True)
        early, late = bytes([number, 2, 128, 0, 0]), bytes([4, 33, 4, 147, 224])
        (folder / f"0000{number}.bin").write_bytes(early + late)
    return here


def test_all_data_sets_are_listed_with_what_to_do_about_them(regraft, recordings):
    said = regraft("data")
    assert said.code == 0
    for part in ("cifar10", "50,000 + 10,000", "2 of 60,000", "T x 2 x 34 x 34", "missing", "found", "data/N-MNIST"):
        assert part in said.out
    assert "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz" in said.out
    assert "there is no elsewhere/N-MNIST" in regraft("data --folder elsewhere").out
    assert sorted(os.listdir(recordings)) == ["data", "tiny.yaml"]


def test_the_environment_says_where_data_lies(regraft, recordings, monkeypatch):
    monkeypatch.setenv("REGRAFT_DATA", str(recordings / "data"))
    monkeypatch.chdir("/")
    assert "2 of 60,000" in regraft("data").out


def test_one_data_set_is_checked_described_and_shown(regraft, recordings):
    said = regraft("data nmnist --steps 4")
    assert said.code == 0
    for part in (
        "events, 10 classes",
        "data/N-MNIST: each file is a whole recording",
        "2 samples, 4 x 2 x 34 x 34, uint8",
        "0: 0, 1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 6: 0, 7: 0, 8: 1, 9: 0",
        "data-nmnist.svg",
    ):
        assert part in said.out
    assert (recordings / "data-nmnist.svg").read_text().startswith("<svg")


def test_the_picture_is_what_its_name_says(regraft, here):
    assert regraft("data standin --picture some.png").code == 0
    assert (here / "some.png").read_bytes().startswith(b"\x89PNG")
    assert regraft("data standin --picture some.jpg").message == (
        "picture is 'some.jpg': give a file that ends in .svg or .png"
    )
    said = regraft("data standin --picture nowhere/some.svg")
    assert (said.code, said.message) == (
        1,
        "cannot write nowhere/some.svg: No such file or directory; name another file with --picture",
    )


def test_ones_own_data_is_described_too(regraft, here):
    (here / "mine.py").write_text(
        "import numpy as np\ndef bytes_(split, seed): return np.full((6, 1, 8, 8), 7, np.uint8), np.arange(6) % 3\n"
    )
    said = regraft("data mine:bytes_")
    assert said.code == 0, said.err
    assert "6 samples, 1 x 8 x 8, uint8" in said.out
    assert "2 of each class" in said.out
    assert (here / "data-bytes_.svg").exists()


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("data nmist", 2, "did you mean 'nmnist'"),
        ("data nmnist", 1, "there is no data/N-MNIST/Train/0/*.bin"),
        ("data cifar10 --folder nowhere", 1, "there is no nowhere/cifar-10-batches-bin/data_batch_1.bin"),
        ("data nmnist --steps 0", 2, "steps is 0"),
        ("data digits --fodler x", 2, "--folder"),
        ("train tiny.yaml --data.name cifar100", 1, "there is no data/cifar-100-binary/train.bin"),
        ("train tiny.yaml --data.name cifar100 --data.folder far", 1, "there is no far/cifar-100-binary/train.bin"),
        ("train tiny.yaml --data.options.shpe 3", 2, "'shpe'; it takes split, seed, shape"),
        ("train tiny.yaml --data.options.samples", 2, "needs a value"),
        ("train tiny.yaml --data.cutout 9", 2, "data.cutout is 9, but samples are 8 pixels wide"),
        ("train tiny.yaml --data.cutout 2 --data.augment False", 2, "data.cutout is 2, but data.augment is off"),
        ("train tiny.yaml --data.cutout -1", 2, "data.cutout is -1"),
    ],
)
def test_what_cannot_be_meant_or_found_leaves_nothing_behind(regraft, here, files, monkeypatch, line, code, message):
    monkeypatch.delenv("REGRAFT_DATA", raising=False)
    before = files()
    said = regraft(line)
    assert (said.code, message in said.message) == (code, True), said.message
    assert files() == before


def test_options_of_the_data_are_flags(regraft, here):
    line = "train tiny.yaml --data.options.samples 48 --data.options.shape [1,4,4] --data.cutout 2"
    said = regraft(f"{line} --training.epochs 1 --topology.every 1")
    assert said.code == 0, said.err
    from regraft.training import load_recipe

    recipe = load_recipe(next(here.rglob("recipe.yaml")))
    assert recipe.data.options == {"samples": 48, "shape": [1, 4, 4]}
    assert recipe.data.cutout == 2
