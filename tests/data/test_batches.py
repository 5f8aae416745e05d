"""Batches are a pure function of (seed, epoch, index)."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import Augmentation, Normalisation, Split, as_input, count, plain_batches, training_batches
from regraft.data.batches import _mix
from regraft.errors import UsageError

SHIFT = Augmentation(crop=1, fill="edge")
ALL = Augmentation(crop=2, flip=True, roll=1, cutout=3)


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
    batches = list(training_batches(data, batch, seed=seed, epoch=epoch))
    assert len(batches) == count(data, batch) == samples // batch
    assert all(len(y) == batch for _, y in batches)
    seen = torch.cat([y for _, y in batches])
    assert len(seen.unique()) == len(seen)
    assert all(torch.equal(x[:, 0, 0, 0].long(), y) for x, y in batches), "a label stays with its sample"


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    data = split(64)

    def order(seed, epoch, augment=None):
        torch.randn(3)  # what others draw does not matter
        return torch.cat([y for _, y in training_batches(data, 16, seed=seed, epoch=epoch, augment=augment)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) == order(0, 1, augment=ALL)
    orders = [order(seed, epoch) for seed in range(4) for epoch in range(1, 5)]
    assert len({tuple(o) for o in orders}) == 16
    assert order(0, 1) != list(range(64))


def test_what_is_left_out_differs_from_epoch_to_epoch():
    seen = [
        set(torch.cat([y for _, y in training_batches(split(20), 16, seed=0, epoch=e)]).tolist()) for e in range(1, 30)
    ]
    assert set.union(*seen) == set(range(20))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(training_batches(split(32), 8, seed=0, epoch=1, augment=ALL))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_can_be_made_again_without_those_before_it():
    generator = torch.Generator().manual_seed(0)
    data = Split(torch.randn(64, 1, 8, 8, generator=generator), torch.arange(64))
    whole = list(training_batches(data, 16, seed=3, epoch=2, augment=ALL))
    late = training_batches(data, 16, seed=3, epoch=2, augment=ALL)
    for x, y in whole:
        again, label = next(late)
        assert torch.equal(again, x)
        assert torch.equal(label, y)
    smaller = list(training_batches(data, 16, seed=3, epoch=2))
    assert [y.tolist() for _, y in smaller] == [y.tolist() for _, y in whole]
    assert not any(torch.equal(a, b) for (a, _), (b, _) in zip(smaller, whole, strict=True)), "moved"


@settings(deadline=None, max_examples=50)
@given(st.integers(4, 40), st.integers(1, 4), st.integers(0, 99), st.integers(1, 50), st.data())
def test_an_epoch_begun_in_the_middle_is_the_rest_of_it(samples, batch, seed, epoch, data):
    source = Split(torch.randn(samples, 1, 8, 8), torch.arange(samples))
    whole = list(training_batches(source, batch, seed=seed, epoch=epoch, augment=ALL))
    start = data.draw(st.integers(0, len(whole)))
    rest = list(training_batches(source, batch, seed=seed, epoch=epoch, augment=ALL, start=start))
    assert digest(rest) == digest(whole[start:])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 99), st.booleans())
def test_processes_together_see_what_one_sees(world, share, seed, events):
    shape = (30, 3, 1, 8, 8) if events else (30, 1, 8, 8)
    source = Split(torch.randn(shape), torch.arange(30))
    batch, common = world * share, {"seed": seed, "epoch": 2, "augment": ALL, "start": 1}
    whole = training_batches(source, batch, **common)
    parts = [training_batches(source, batch, **common, part=(rank, world)) for rank in range(world)]
    for (x, y), *shares in zip(whole, *parts, strict=True):
        assert all(len(labels) == share for _, labels in shares)
        assert torch.equal(torch.cat([part for part, _ in shares], dim=1 if events else 0), x)
        assert torch.equal(torch.cat([labels for _, labels in shares]), y)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_plain_batches_are_dealt_out_in_turn(world):
    whole = list(plain_batches(split(23), 4))
    for rank in range(world):
        mine = list(plain_batches(split(23), 4, part=(rank, world)))
        assert [y.tolist() for _, y in mine] == [y.tolist() for _, y in whole[rank::world]]


def test_what_cannot_be_shared_or_started_is_refused_at_once():
    data = split(12)
    for arguments, message in (
        ({"part": (0, 3)}, "data.batch is 4: 3 processes cannot share it evenly"),
        ({"part": (2, 2)}, "give .rank, world. with 0 <= rank < world"),
        ({"part": (-1, 2)}, "0 <= rank < world"),
        ({"start": -1}, "start is -1: an epoch has batches 0 to 2"),
        ({"start": 4}, "start is 4"),
    ):
        with pytest.raises(UsageError, match=message):
            training_batches(data, 4, seed=0, epoch=1, **arguments)
    assert list(training_batches(data, 4, seed=0, epoch=1, start=3)) == []
    with pytest.raises(UsageError, match="0 <= rank < world"):
        plain_batches(data, 4, part=(1, 1))


def test_bytes_stay_bytes_until_a_batch_is_made_and_are_normalised_then():
    x = torch.randint(0, 256, (40, 2, 8, 8), dtype=torch.uint8)
    normal = Normalisation((100.0, 20.0), (50.0, 4.0))
    data = Split(x, torch.arange(40), normal)
    wanted = torch.stack([(x[:, 0].float() - 100) / 50, (x[:, 1].float() - 20) / 4], dim=1)
    for got, y in [*plain_batches(data, 8), *training_batches(data, 8, seed=0, epoch=1)]:
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted[y])
    assert data.x.dtype == torch.uint8
    [(plain, _)] = plain_batches(Split(x, torch.arange(40)), 40)
    assert torch.equal(plain, x.float()), "values of one's own are not rescaled"
    events = Split(x.unsqueeze(1).expand(-1, 3, -1, -1, -1), torch.arange(40), normal)
    assert torch.equal(next(plain_batches(events, 40))[0][2], wanted)


def test_padding_is_zero_as_stored_and_a_cutout_the_mean():
    data = Split(torch.full((50, 1, 4, 4), 100, dtype=torch.uint8), torch.arange(50), Normalisation((80.0,), (10.0,)))
    ((cropped, _),) = training_batches(data, 50, seed=0, epoch=1, augment=Augmentation(crop=2))
    assert cropped.unique().tolist() == [-8.0, 2.0]
    ((cut, _),) = training_batches(data, 50, seed=0, epoch=1, augment=Augmentation(cutout=2))
    assert cut.unique().tolist() == [0.0, 2.0]


def test_another_process_makes_the_same_batches():
    code = (
        "import hashlib; from regraft import data; d = data.load('standin'); h = hashlib.sha256(); "
        "[h.update(x.contiguous().numpy().tobytes() + y.numpy().tobytes()) "
        " for x, y in data.training_batches(d.train, 16, seed=5, epoch=7, augment=data.Augmentation(2, 'edge', True))];"
        "print(h.hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    from regraft import data

    augment = Augmentation(2, "edge", True)
    ours = digest(training_batches(data.load("standin").train, 16, seed=5, epoch=7, augment=augment))
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
    [(batch, y)] = training_batches(Split(x.float(), torch.arange(2)), 2, seed=0, epoch=1, augment=SHIFT)
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
