"""Augmentation of whole batches: what may happen to a sample, the same at all steps, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from regraft.data.augment import Augmentation, Draw

SIZES = (st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(augment: Augmentation, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    draw = augment.draw(len(x), x.shape[-2], x.shape[-1], seeded(seed))
    return augment.cut(augment.move(x, draw), draw)


def windows(x: torch.Tensor, pixels: int, fill: str) -> list[torch.Tensor]:
    """All that a padded crop of `[C, H, W]` may give."""
    padded = F.pad(x[None], [pixels] * 4, mode="replicate" if fill == "edge" else "constant")[0]
    h, w = x.shape[-2:]
    reach = range(2 * pixels + 1)
    return [padded[:, top : top + h, left : left + w] for top in reach for left in reach]


def test_nothing_asked_is_the_identity():
    x = torch.randn(5, 2, 6, 7)
    assert torch.equal(made(Augmentation(), x), x)


@settings(deadline=None)
@given(*SIZES, st.integers(0, 2), st.sampled_from(["zero", "edge"]), st.booleans(), st.integers(0, 99))
def test_each_sample_is_a_window_of_the_padded_one_or_its_mirror_image(n, channels, h, w, pixels, fill, flip, seed):
    x = torch.randn(n, channels, h, w, generator=seeded(seed))
    found = made(Augmentation(crop=pixels, fill=fill, flip=flip), x, seed)
    for before, after in zip(x, found, strict=True):
        possible = windows(before, pixels, fill)
        possible += [window.flip(-1) for window in possible] if flip else []
        assert any(torch.equal(after, window) for window in possible)


def test_all_moves_and_both_sides_occur_equally_often():
    x = torch.arange(1, 26).byte().reshape(1, 1, 5, 5).expand(9000, 1, 5, 5)
    found = made(Augmentation(crop=1, flip=True), x)
    kinds, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18
    assert found.dtype == torch.uint8, "moved as it is stored, a quarter of the memory"
    assert counts.min() > 400
    assert counts.max() < 600


@settings(deadline=None)
@given(*SIZES, st.integers(0, 99))
def test_a_flip_is_an_involution_and_only_that(n, channels, h, w, seed):
    x = torch.randn(n, channels, h, w, generator=seeded(seed))
    once = made(Augmentation(flip=True), x, seed)
    assert torch.equal(made(Augmentation(flip=True), once, seed), x)
    flipped = [not torch.equal(a, b) for a, b in zip(x, once, strict=True)]
    for before, after, was in zip(x, once, flipped, strict=True):
        assert torch.equal(after, before.flip(-1) if was else before)


@settings(deadline=None)
@given(*SIZES, st.integers(0, 8), st.integers(0, 99))
def test_a_roll_keeps_all_values_and_goes_no_further_than_asked(n, channels, h, w, pixels, seed):
    x = torch.randn(n, channels, h, w, generator=seeded(seed))
    found = made(Augmentation(roll=pixels), x, seed)
    assert torch.equal(found.flatten(1).sort()[0], x.flatten(1).sort()[0])
    reach = range(-pixels, pixels + 1)
    for before, after in zip(x, found, strict=True):
        assert any(torch.equal(after, before.roll((a, b), (-2, -1))) for a in reach for b in reach)


@settings(deadline=None)
@given(*SIZES, st.integers(1, 6), st.integers(0, 99))
def test_a_cutout_blanks_the_part_of_its_square_that_lies_inside(n, channels, h, w, side, seed):
    x = torch.rand(n, channels, h, w, generator=seeded(seed)) + 1
    found = made(Augmentation(cutout=side), x, seed)
    for before, after in zip(x, found, strict=True):
        gone = (after == 0)[0]
        assert torch.equal(after, before.masked_fill(gone, 0)), "the same square in all channels, the rest as it was"
        rows, columns = gone.any(1).nonzero().flatten().tolist(), gone.any(0).nonzero().flatten().tolist()
        assert gone.sum() == len(rows) * len(columns) > 0
        for inside, whole in ((rows, h), (columns, w)):
            assert inside == list(range(inside[0], inside[-1] + 1))
            at_a_border = inside[0] == 0 or inside[-1] == whole - 1
            assert len(inside) == side or (at_a_border and len(inside) < side)
            assert len(inside) >= min(side // 2, 1), "its centre is a pixel"


def test_the_centre_of_a_cutout_may_be_any_pixel():
    found = made(Augmentation(cutout=3), torch.ones(4000, 1, 6, 6))
    areas = (found == 0).flatten(1).sum(1)
    shares = {area: float((areas == area).float().mean()) for area in (4, 6, 9)}
    assert areas.unique().tolist() == [4, 6, 9]
    assert shares[4] == pytest.approx(4 / 36, abs=0.03), "the centre in one of 4 corners"
    assert shares[6] == pytest.approx(16 / 36, abs=0.03), "at one of 16 edges"


ALL = Augmentation(crop=2, flip=True, roll=3, cutout=3)


def test_events_move_as_one():
    """All steps and channels of a sample see the same move: a gesture does not jump."""
    still = (torch.rand(6, 1, 1, 8, 8, generator=seeded()) + 1).expand(6, 4, 2, 8, 8)  # [N, T, C, H, W]
    found = made(ALL, still, 1)
    assert found.shape == still.shape
    assert torch.equal(found, found[:, :1, :1].expand_as(found))
    assert torch.equal(found[:, 0], made(ALL, still[:, 0], 1)), "as an image of the same draw"


def test_what_is_given_stays_as_it_was():
    x = torch.randn(4, 1, 8, 8)
    before = x.clone()
    one = made(ALL, x)
    assert torch.equal(x, before)
    assert torch.equal(one, made(ALL, x))
    assert not torch.equal(one, made(ALL, x, 3))


def test_a_share_of_a_batch_is_moved_as_in_the_whole():
    x = torch.randn(6, 1, 8, 8)
    draw = ALL.draw(6, 8, 8, seeded())
    whole = ALL.cut(ALL.move(x, draw), draw)
    for part in (slice(0, 3), slice(3, 6), slice(2, 3)):
        assert torch.equal(ALL.cut(ALL.move(x[part], draw.share(part)), draw.share(part)), whole[part])
    assert isinstance(draw, Draw)


def test_a_cutout_changes_no_other_draw():
    """Runs with and without it see the same crops, so their difference is the cutout's."""
    with_, without = Augmentation(crop=2, roll=1, cutout=2), Augmentation(crop=2, roll=1)
    assert torch.equal(with_.draw(5, 8, 8, seeded()).values[:5], without.draw(5, 8, 8, seeded()).values[:5])
