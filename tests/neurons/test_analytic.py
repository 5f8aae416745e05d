"""The recursion with its backward pass written out, against autograd through the loop."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import ShapeError
from regraft.neurons import LIF, PLIF, multistep
from regraft.neurons.analytic import analytic_multistep
from regraft.neurons.surrogate import Atan, Rectangle, Sigmoid, Triangle

SURROGATES = [Triangle(), Triangle(0.5), Atan(), Rectangle(), Sigmoid()]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.05}  # of the largest gradient


def both(steps: int, decay: Any, dtype: torch.dtype, *, state: bool, static: bool, last: bool, **rest: Any) -> Any:
    """(spikes, membrane, gradients) of the two, for random currents and random gradients."""
    for function in (multistep, analytic_multistep):
        draw = torch.Generator().manual_seed(1)
        x = (torch.randn(1 if static else steps, 3, 4, 5, 6, generator=draw) * 2).to(dtype)
        if last:
            x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (-1, 3))
        x.requires_grad_()
        v0 = torch.randn(3, 4, 5, 6, generator=draw).to(dtype).requires_grad_() if state else None
        learnt = decay == "learnt"
        d = torch.tensor(0.7, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True) if learnt else decay
        more: dict[str, Any] = {"repeat": steps} if static and function is analytic_multistep else {}
        seen = x[0].expand(steps, *x.shape[1:]) if static and not more else x
        s, v = function(seen, decay=d, threshold=1.0, state=v0, **more, **rest)
        onto_s, onto_v = (torch.randn(t.shape, generator=draw).to(dtype) for t in (s, v))
        ((s * onto_s).sum() + ((v * onto_v).sum() if state else 0)).backward()
        yield s.detach(), v.detach(), [t.grad for t in (x, v0, d) if isinstance(t, Tensor)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("last", "static"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("decay", [0.5, 1.0, "learnt"])
def test_spikes_are_equal_and_gradients_are_those_of_autograd(dtype, last, static, decay):
    flags = itertools.product([1, 2, 5], ["hard", "soft"], [True, False], [True, False], [True, False])
    for i, (steps, reset, detach, gain, state) in enumerate(flags):
        if gain and decay == 1.0:
            continue
        rest = {"reset": reset, "detach_reset": detach, "decay_input": gain, "surrogate": SURROGATES[i % 5]}
        slow, fast = both(steps, decay, dtype, state=state, static=static, last=last, **rest)
        assert torch.equal(slow[0], fast[0]), rest
        assert torch.equal(slow[1], fast[1]), rest
        for index, (expected, found) in enumerate(zip(slow[2], fast[2], strict=True)):
            if index == len(slow[2]) - 1 and decay == "learnt" and dtype == torch.bfloat16:
                continue  # a sum over all neurons, in 8 bits by the loop: it is the loop that is wrong
            if expected is None:  # the first step of a decay that nothing decays
                assert found is None or not bool(found.any())
                continue
            scale = float(expected.abs().max().clamp_min(1e-3))
            wide = 1e-3 if expected.ndim == 0 and dtype == torch.float32 else TOLERANCE[dtype]
            assert float((found - expected).abs().max()) <= wide * scale, (index, rest)
            assert found.dtype == expected.dtype


def test_another_amount_of_a_soft_reset():
    rest = {"reset": "soft", "subtract": 1.5, "detach_reset": False, "decay_input": False, "surrogate": Triangle()}
    slow, fast = both(4, 0.5, torch.float64, state=True, static=False, last=False, **rest)
    assert torch.equal(slow[0], fast[0])
    for expected, found in zip(slow[2], fast[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("neuron", [LIF(steps=3), LIF(steps=3, static=True), PLIF(steps=3)], ids=str)
def test_channels_last_stays_channels_last(neuron):
    """Else batch normalisation gets a gradient in another layout than its input: several times slower."""
    x = torch.randn(6, 4, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    spikes = neuron(x)
    assert spikes.is_contiguous(memory_format=torch.channels_last)
    spikes.backward(torch.randn_like(spikes))
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_only_a_single_step_is_repeated():
    with pytest.raises(ShapeError, match="repeat is 3 and the input has 2 steps"):
        analytic_multistep(torch.zeros(2, 3), decay=0.5, threshold=1.0, surrogate=Triangle(), repeat=3)
    with pytest.raises(ShapeError, match="the state is"):
        analytic_multistep(torch.zeros(2, 3), decay=0.5, threshold=1.0, surrogate=Triangle(), state=torch.zeros(4))
