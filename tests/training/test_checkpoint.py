"""What is written is read back to the bit, or refused; a failed write leaves the old file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from typing import Any

import pytest
import torch

from regraft.errors import RunError
from regraft.training import files
from regraft.training.checkpoint import newest_checkpoint, read_tensors, save_checkpoint, write_tensors
from regraft.training.files import write_bytes, write_json


def test_tensors_and_manifest_come_back_to_the_bit(tmp_path):
    tied = torch.randn(3, 4)
    given = {
        "a": tied,
        "the same": tied,
        "a view": tied.t(),
        "mask": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "half": torch.randn(5).bfloat16(),
        "parameter": torch.nn.Parameter(torch.full((2,), float("nan"))),
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "x.safetensors", given, {"epoch": 3})
    found, manifest = read_tensors(tmp_path / "x.safetensors")
    assert manifest["epoch"] == 3
    assert manifest["sha256"] == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].nan_to_num(9), tensor.detach().nan_to_num(9))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _manifest(path, **changes):
    path = path.with_suffix(".json")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **changes}))


def _no_tensors(path):
    path.write_bytes(b"not a safetensors file")
    _manifest(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


DAMAGES = {
    "truncated": (_truncate, "its sha256"),
    "a bit flipped": (_flip, "its sha256"),
    "empty": (lambda path: path.write_bytes(b""), "its sha256"),
    "missing": (lambda path: path.unlink(), "cannot read .*x.safetensors"),
    "no manifest": (lambda path: path.with_suffix(".json").unlink(), "cannot read .*x.json"),
    "half a manifest": (lambda path: path.with_suffix(".json").write_text('{"format": 1, "sha'), "not JSON"),
    "a list": (lambda path: path.with_suffix(".json").write_text("[]"), "it is no manifest"),
    "another format": (lambda path: _manifest(path, format=2), "has format 2; .* reads format 1"),
    "no sha": (lambda path: _manifest(path, sha256=None), "its sha256"),
    "no tensors": (_no_tensors, "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_and_never_guessed_around(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {})
    harm, message = DAMAGES[damage]
    harm(path)
    with pytest.raises(RunError, match=message):
        read_tensors(path)


def test_a_manifest_that_says_something_else_is_damaged(tmp_path):
    """The sha256 is of the tensors; a digit that changed in the manifest would else be taken for true."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {"lr": 0.05, 3: "a key that JSON turns to text", "seen": (1, 2)})
    read_tensors(path)
    beside = path.with_suffix(".json")
    beside.write_text(beside.read_text().replace("0.05", "0.07"))
    with pytest.raises(RunError, match=r"x\.json is damaged: its digest"):
        read_tensors(path)


@pytest.mark.parametrize("writes", [1, 2, 3, 4, 5, 6])
def test_a_crash_after_any_write_leaves_the_old_pair_or_the_new_one(tmp_path, monkeypatch, writes):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.tensor(0)}, {"epoch": 0})
    real, left = os.replace, [writes]

    def crash(*args: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(files.os, "replace", crash)
    reached = 0
    with contextlib.suppress(KeyboardInterrupt):
        for epoch in (1, 2, 3):
            write_tensors(path, {"a": torch.tensor(epoch)}, {"epoch": epoch})
            reached = epoch
    assert reached < 3, "it was to crash"
    tensors, manifest = read_tensors(path)
    assert int(tensors["a"]) == manifest["epoch"]
    assert manifest["epoch"] in (reached, reached + 1)
    monkeypatch.undo()
    write_tensors(path, {"a": torch.tensor(9)}, {"epoch": 9})  # a crash does not stand in the way of the next
    assert read_tensors(path)[1]["epoch"] == 9


def test_data_are_on_the_disk_before_their_name_is(tmp_path, monkeypatch):
    """Else a loss of power could leave the new name with nothing behind it."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (done.append("fsync"), sync(handle)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (done.append(f"replace {b.name}"), replace(a, b)))
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {})
    assert done == ["fsync", "replace x.json", "fsync", "fsync", "replace x.safetensors", "fsync"]


def test_the_last_two_checkpoints_stay(tmp_path):
    for step in (3, 6, 9, 12):
        save_checkpoint(tmp_path, step, {"a": torch.tensor(step)}, {"step": step})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"{step:010d}.{suffix}" for step in (9, 12) for suffix in ("json", "safetensors")
    ]
    (tmp_path / "checkpoints" / "0000000012.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="step 9"):
        found = newest_checkpoint(tmp_path)
    assert found is not None
    assert int(found[0]["a"]) == found[1]["step"] == 9


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_bytes(tmp_path / "x", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, full)
            with pytest.raises(RunError, match=r"No space left on device.*What was saved before is untouched"):
                write_bytes(tmp_path / "x", b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["x"]
        assert (tmp_path / "x").read_bytes() == b"old"

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "x", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        write_json(tmp_path / "no" / "x.json", {})
    assert not list(tmp_path.iterdir())


def test_others_may_read_what_they_may_read_elsewhere(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "plain").st_mode
