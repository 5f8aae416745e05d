"""Moves of whole batches: only values of the sample itself, the same at all steps."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data.augment import shift


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """`[..., H, W]` moved so that row r shows row r - down, clamped to the edge."""
    h, w = image.shape[-2:]
    rows = [min(max(r - down, 0), h - 1) for r in range(h)]
    columns = [min(max(c - right, 0), w - 1) for c in range(w)]
    return image[..., rows, :][..., columns]


def test_no_move_is_the_identity():
    x = torch.randn(5, 2, 6, 7)
    assert torch.equal(shift(x, 0, seeded()), x)


@settings(deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.integers(0, 2), st.integers(0, 99)
)
def test_each_sample_is_one_of_the_possible_moves(n, channels, h, w, pixels, seed):
    x = torch.randn(n, channels, h, w, generator=seeded(seed))
    found = shift(x, pixels, seeded(seed))
    reach = range(-pixels, pixels + 1)
    for before, after in zip(x, found, strict=True):
        assert any(torch.equal(after, moved(before, down, right)) for down in reach for right in reach)


def test_all_moves_occur_and_samples_move_apart():
    x = torch.arange(25.0).reshape(1, 1, 5, 5).expand(400, 1, 5, 5)
    corners = {(int(s[0, 2, 2]) // 5, int(s[0, 2, 2]) % 5) for s in shift(x, 1, seeded())}
    assert corners == {(r, c) for r in (1, 2, 3) for c in (1, 2, 3)}


def test_events_move_as_one():
    """All steps and channels of a sample see the same move: a gesture does not jump."""
    still = torch.randn(6, 1, 1, 8, 8, generator=seeded()).expand(6, 4, 2, 8, 8)  # [N, T, C, H, W]
    found = shift(still, 2, seeded(1))
    assert found.shape == still.shape
    assert torch.equal(found, found[:, :1, :1].expand_as(found))


def test_what_is_given_stays_as_it_was():
    x = torch.randn(4, 1, 8, 8)
    before = x.clone()
    shift(x, 3, seeded())
    assert torch.equal(x, before)
    assert torch.equal(shift(x, 3, seeded(2)), shift(x, 3, seeded(2)))
    assert not torch.equal(shift(x, 3, seeded(2)), shift(x, 3, seeded(3)))
