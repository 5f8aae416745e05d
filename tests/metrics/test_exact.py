"""Checks and sums over pieces, against one line of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.metrics import exact
from regraft.metrics.exact import peak, summed


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1,), (7,), (0, 3), (5, 3), (9, 4, 3, 5), (40, 3, 6, 2), (3, 2, 4)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.bool, torch.int64]),
    st.sampled_from([1, 3, 64]),
    st.booleans(),
    st.sampled_from([1, 50, 2**19]),
    st.integers(0, 10**6),
)
def test_sums_and_peaks_are_those_of_numpy(shape, dtype, most, last, piece, seed):
    torch.manual_seed(seed)
    x = torch.randint(0, most + 1, shape).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last and x.dim() == 4 else x
    values = x.to(torch.int64).numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "PIECE", piece)
        assert peak(x, most) == (values.max() if values.size else 0)
        found = summed(x, most)
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), values.sum(0))


@pytest.mark.parametrize("value", [-1.0, 0.5, 65.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_what_is_no_whole_number_up_to_the_most_has_no_peak(value, place, monkeypatch):
    monkeypatch.setattr(exact, "PIECE", 10)
    x = torch.ones(6, 2, 3, 3)
    assert peak(x, 64) == 1
    x.view(-1)[place] = value
    assert peak(x, 64) is None


def test_sums_beyond_single_precision_are_exact():
    assert int(summed(torch.ones(exact.EXACT + 3, dtype=torch.bfloat16), 1)) == exact.EXACT + 3
