"""What is cleared is exactly 0, and nothing else changes by a bit."""

from __future__ import annotations

import pytest
import torch

from regraft.structure.absent import clear

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.int8]


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_absent_connections_are_exactly_zero_and_others_untouched(kind, last):
    torch.manual_seed(0)
    form = torch.channels_last if last else torch.contiguous_format
    x = (torch.randn(5, 7, 3, 3) * 50).to(kind).contiguous(memory_format=form)
    if kind.is_floating_point:
        x[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=kind)
        x[0, 1, 0] = -0.0
    mask = torch.rand(x.shape) < 0.5
    mask[0, :2, 0] = torch.tensor([False, True, False])
    before, parameter = x.clone(), torch.nn.Parameter(x, requires_grad=kind.is_floating_point)
    version = parameter._version
    clear(parameter, mask)
    assert parameter._version > version
    found = parameter.detach()
    assert found.is_contiguous(memory_format=form)
    assert torch.equal(found[mask].nan_to_num(), before[mask].nan_to_num())
    assert torch.equal(found[mask].isnan(), before[mask].isnan())
    assert not bool(found[~mask].contiguous().view(torch.int8).any()), "minus zero is none"
