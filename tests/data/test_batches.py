"""Batches are a pure function of (seed, epoch, index)."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import Split, as_input, count, plain_batches, training_batches
from regraft.data.batches import _mix


def split(samples: int, shape=(1, 8, 8)) -> Split:
    """Samples that tell their index: sample i is full of i."""
    index = torch.arange(samples)
    return Split(index.float().reshape(-1, *[1] * len(shape)).expand(-1, *shape).clone(), index)


def digest(batches) -> str:
    whole = hashlib.sha256()
    for x, y in batches:
        whole.update(x.contiguous().numpy().tobytes() + y.numpy().tobytes())
    return whole.hexdigest()


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**63 - 1), st.integers(1, 1000))
def test_an_epoch_shows_each_sample_at_most_once_in_full_batches(samples, batch, seed, epoch):
    data = split(samples)
    if batch > samples:
        return
    batches = list(training_batches(data, batch, seed=seed, epoch=epoch, augment=False))
    assert len(batches) == count(data, batch) == samples // batch
    assert all(len(y) == batch for _, y in batches)
    seen = torch.cat([y for _, y in batches])
    assert len(seen.unique()) == len(seen)
    assert all(torch.equal(x[:, 0, 0, 0].long(), y) for x, y in batches), "a label stays with its sample"


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    data = split(64)

    def order(seed, epoch, augment=False):
        torch.randn(3)  # what others draw does not matter
        return torch.cat([y for _, y in training_batches(data, 16, seed=seed, epoch=epoch, augment=augment)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) == order(0, 1, augment=True)
    orders = [order(seed, epoch) for seed in range(4) for epoch in range(1, 5)]
    assert len({tuple(o) for o in orders}) == 16
    assert order(0, 1) != list(range(64))


def test_what_is_left_out_differs_from_epoch_to_epoch():
    seen = [
        set(torch.cat([y for _, y in training_batches(split(20), 16, seed=0, epoch=e, augment=False)]).tolist())
        for e in range(1, 30)
    ]
    assert set.union(*seen) == set(range(20))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(training_batches(split(32), 8, seed=0, epoch=1, augment=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_can_be_made_again_without_those_before_it():
    generator = torch.Generator().manual_seed(0)
    data = Split(torch.randn(64, 1, 8, 8, generator=generator), torch.arange(64))
    whole = list(training_batches(data, 16, seed=3, epoch=2, augment=True))
    late = training_batches(data, 16, seed=3, epoch=2, augment=True)
    for x, y in whole:
        again, label = next(late)
        assert torch.equal(again, x)
        assert torch.equal(label, y)
    smaller = list(training_batches(data, 16, seed=3, epoch=2, augment=False))
    assert [y.tolist() for _, y in smaller] == [y.tolist() for _, y in whole]
    assert not any(torch.equal(a, b) for (a, _), (b, _) in zip(smaller, whole, strict=True)), "moved"


def test_another_process_makes_the_same_batches():
    code = (
        "import hashlib; from regraft import data; d = data.load('standin'); h = hashlib.sha256(); "
        "[h.update(x.contiguous().numpy().tobytes() + y.numpy().tobytes()) "
        " for x, y in data.training_batches(d.train, 16, seed=5, epoch=7, augment=True)]; print(h.hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    from regraft import data

    ours = digest(training_batches(data.load("standin").train, 16, seed=5, epoch=7, augment=True))
    assert done.stdout.strip() == ours


@pytest.mark.parametrize(("batch", "sizes"), [(4, [4, 4, 2]), (10, [10]), (99, [10])])
def test_plain_batches_are_all_samples_in_order(batch, sizes):
    batches = list(plain_batches(split(10), batch))
    assert [len(y) for _, y in batches] == sizes
    assert torch.cat([y for _, y in batches]).tolist() == list(range(10))


def test_events_have_time_first():
    x = torch.arange(2 * 3).reshape(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 4)  # [N, T, ...]
    assert as_input(x).shape == (3, 2, 1, 4, 4)
    assert as_input(x)[2, 1, 0, 0, 0] == 5
    images = torch.zeros(2, 1, 4, 4)
    assert as_input(images) is images
    [(batch, y)] = training_batches(Split(x.float(), torch.arange(2)), 2, seed=0, epoch=1, augment=True)
    assert batch.shape == (3, 2, 1, 4, 4)
    assert torch.equal(batch[0, :, 0, 0, 0].long(), 3 * y)


def test_streams_of_neighbours_have_nothing_in_common():
    seeds = {
        _mix(*key)
        for key in [(s, e) for s in range(30) for e in range(30)]
        + [(s, e, i) for s in range(9) for e in range(9) for i in range(9)]
    }
    assert len(seeds) == 900 + 729
    assert all(0 <= seed < 2**63 for seed in seeds)
