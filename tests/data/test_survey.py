"""What data is there: found, missing or damaged, and what is in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import DATA, FACTS
from regraft.data.survey import _moments, describe, status, survey


def test_every_data_set_has_its_facts_and_a_line(tmp_path):
    assert set(FACTS) == set(DATA)
    rows = survey(tmp_path)
    assert [row.name for row in rows] == list(DATA)
    for row in rows:
        assert row.what
        assert row.shape
        assert (row.state in ("missing", "damaged")) == bool(row.advice)
    states = {row.name: row.state for row in rows}
    assert states["standin"] == states["synthetic_gestures"] == "made"
    assert states["cifar10"] == states["cifar100"] == states["nmnist"] == "missing"


@pytest.mark.parametrize("name", ["digits", "standin"])
def test_facts_are_what_the_data_set_gives(name):
    for split, samples in zip(("train", "test"), FACTS[name].samples, strict=True):
        x, y = DATA[name](split, 0)
        assert x.shape == (samples, *FACTS[name].shape)
        assert len(set(y.tolist())) == (FACTS[name].classes or 10)


def test_facts_of_the_simulated_gestures():
    facts = FACTS["synthetic_gestures"]
    x, y = DATA["synthetic_gestures"]("train", 0, steps=2, samples=22)
    assert x.shape[2:] == facts.shape
    assert set(y.tolist()) == set(range(facts.classes))
    assert len(facts.names) == facts.classes == 11


def test_files_of_the_wrong_size_are_damage(tiny_cifar, tmp_path, monkeypatch):
    layout, _ = tiny_cifar(100)
    assert status("cifar100", tmp_path).state == "damaged"
    assert "truncated: 12,296 bytes, not 153,700,000" in status("cifar100", tmp_path).advice
    sized = FACTS["cifar100"].__class__(samples=(4, 4), shape=(3, 32, 32), classes=100, archive=layout.archive)
    monkeypatch.setitem(FACTS, "cifar100", sized)
    found = status("cifar100", tmp_path)
    assert (found.state, found.where, found.advice) == ("found", str(tmp_path / "cifar-100-binary"), "")
    (tmp_path / "cifar-100-binary" / "test.bin").unlink()
    assert status("cifar100", tmp_path).state == "damaged"


def test_a_subset_of_recordings_is_counted(tiny_nmnist, tmp_path):
    tiny_nmnist(dict.fromkeys([("Train", 5, "1"), ("Train", 0, "2")]))
    assert status("nmnist", tmp_path).state == "damaged"
    tiny_nmnist(dict.fromkeys([("Test", 7, "1")]))
    found = status("nmnist", tmp_path)
    assert (found.state, found.samples) == ("found", "2 of 60,000 + 1 of 10,000")
    assert found.shape == "T x 2 x 34 x 34"


def test_a_description_counts_what_was_read(tiny_nmnist, tmp_path):
    tiny_nmnist(dict.fromkeys([("Train", 5, "1"), ("Train", 5, "2"), ("Test", 7, "1")]))
    found = describe("nmnist", tmp_path, steps=3)
    assert found.counts == {"train": [0] * 5 + [2] + [0] * 4, "test": [0] * 7 + [1, 0, 0]}
    assert found.bytes == 3 * 3 * 2 * 34 * 34
    assert sum(found.mean) == pytest.approx(120 / (2 * 3 * 34 * 34))
    assert found.low == 0
    assert found.high >= 1


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 99))
def test_moments_are_those_of_each_channel(n, channels, whole, events, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, 2, channels, 3, 4) if events else (n, channels, 3, 4))
    tensor = torch.from_numpy(x).byte() if whole else torch.from_numpy(x / 255).float()
    axes = tuple(axis for axis in range(x.ndim) if axis != x.ndim - 3)
    mean, std = _moments(tensor)
    assert np.allclose(mean, tensor.double().numpy().mean(axes))
    assert np.allclose(std, tensor.double().numpy().std(axes))
