"""The recursion against traces worked by hand, and the modules as views of it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from regraft.errors import ShapeError
from regraft.neurons import IF, LIF, PLIF, Triangle, fold, multistep

DRIVE = [0.5, 0.75, 1.0, 0.25, 2.0, 0.5]


def trace(neuron: LIF, drive: list[float]) -> tuple[list[float], float]:
    spikes, v = neuron.stream(torch.tensor(drive).reshape(-1, 1))
    return spikes.flatten().tolist(), float(v.detach())


def test_hard_reset_by_hand():
    # decay 0.5, threshold 1:   u = 0.5 v + x
    #   0.5 -> v 0.5 | 0.25 + 0.75 = 1.0 fires (exactly at the threshold), v 0 | 0 + 1.0 fires, v 0
    #   0.25 -> v 0.25 | 0.125 + 2 = 2.125 fires, v 0 | 0.5 -> v 0.5
    assert trace(LIF(0.5), DRIVE) == ([0, 1, 1, 0, 1, 0], 0.5)


def test_soft_reset_by_hand():
    #   0.5 | 1.0 fires, v 0 | 1.0 fires, v 0 | 0.25 | 2.125 fires, v 1.125 | 0.5625 + 0.5 = 1.0625 fires, v 0.0625
    assert trace(LIF(0.5, reset="soft"), DRIVE) == ([0, 1, 1, 0, 1, 1], 0.0625)


def test_soft_reset_with_another_amount_by_hand():
    # subtract 1.5:   0.5 | 1.0 fires, v -0.5 | -0.25 + 1 = 0.75 | 0.375 + 0.25 = 0.625
    #   0.3125 + 2 = 2.3125 fires, v 0.8125 | 0.40625 + 0.5 = 0.90625
    assert trace(LIF(0.5, reset="soft", subtract=1.5), DRIVE) == ([0, 1, 0, 0, 1, 0], 0.90625)


def test_decay_input_by_hand():
    # decay 0.75, gain 0.25:   0.5 | 0.375 + 1 = 1.375 fires, v 0 | 0.25 | 0.1875 + 1 = 1.1875 fires, v 0
    assert trace(LIF(0.75, decay_input=True), [2.0, 4.0, 1.0, 4.0]) == ([0, 1, 0, 1], 0.0)


def test_threshold_by_hand():
    # threshold 2, decay 0.5:   1.5 | 0.75 + 1.25 = 2.0 fires, v 0 | 1.0
    assert trace(LIF(0.5, threshold=2.0), [1.5, 1.25, 1.0]) == ([0, 1, 0], 1.0)


def test_integrate_and_fire_by_hand():
    #   0.25 | 0.75 | 1.0 fires, v 0 | 0.75 | 1.25 fires, v 0 | -1
    assert trace(IF(), [0.25, 0.5, 0.25, 0.75, 0.5, -1.0]) == ([0, 0, 1, 0, 1, 0], -1.0)


def test_parametric_lif_by_hand():
    # tau 2: w = 0, decay 0.5, gain 0.5:   0.5 | 0.25 + 1.5 = 1.75 fires, v 0 | 0.25
    assert trace(PLIF(2.0), [1.0, 3.0, 0.5]) == ([0, 1, 0], 0.25)
    # without decay_input:   1.0 fires, v 0 | 0.75 | 0.375 + 0.5 = 0.875
    assert trace(PLIF(2.0, decay_input=False), [1.0, 0.75, 0.5]) == ([1, 0, 0], 0.875)


def test_gradient_of_w_in_closed_form():
    # tau 4: q = sigmoid(w) = 1/4, dq/dw = q (1 - q) = 3/16; x = 2, 4; nothing fires at the first step
    #   u0 = q x0 = 0.5                              h(u0 - 1) = 0.5      du0/dq = x0 = 2
    #   u1 = (1 - q) q x0 + q x1 = 0.375 + 1 = 1.375 h(u1 - 1) = 0.625    du1/dq = (1 - 2q) x0 + x1 = 1 + 4 = 5
    #   d(s0 + s1)/dw = (0.5 * 2 + 0.625 * 5) * 3/16 = 4.125 * 0.1875 = 0.7734375
    neuron = PLIF(4.0)
    spikes, _ = neuron.stream(torch.tensor([[2.0], [4.0]]))
    assert spikes.flatten().tolist() == [0, 1]
    spikes.sum().backward()
    assert float(neuron.w.grad) == pytest.approx(0.7734375, rel=1e-6)


@pytest.mark.parametrize(
    ("reset", "detach", "expected"),
    [
        # decay 0.5, triangle of width 1, x0 = 1.25: u0 = 1.25, fires, h0 = 0.75; x1 = 0.75; loss = s1
        # hard: v0 = u0 (1 - s0) = 0, u1 = 0.75, h1 = 0.75
        ("hard", True, 0.0),  # dv0/du0 = 1 - s0 = 0
        ("hard", False, -0.3515625),  # dv0/du0 = 1 - s0 - u0 h0 = -0.9375;   0.75 * 0.5 * -0.9375
        # soft: v0 = u0 - s0 = 0.25, u1 = 0.125 + 0.75 = 0.875, h1 = 0.875
        ("soft", True, 0.4375),  # dv0/du0 = 1;          0.875 * 0.5
        ("soft", False, 0.109375),  # dv0/du0 = 1 - h0 = 0.25;   0.875 * 0.5 * 0.25
    ],
)
def test_gradient_through_the_reset_by_hand(reset, detach, expected):
    x = torch.tensor([[1.25], [0.75]], requires_grad=True)
    spikes, _ = LIF(0.5, reset=reset, detach_reset=detach).stream(x)
    spikes[1].sum().backward()
    assert float(x.grad[0]) == expected
    assert float(x.grad[1]) == (0.75 if reset == "hard" else 0.875)  # h1


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.4


NEURONS = [
    LIF(0.6),
    LIF(0.6, reset="soft"),
    LIF(0.6, reset="soft", subtract=0.3),
    LIF(0.6, threshold=0.4, decay_input=True),
    IF(reset="soft"),
    PLIF(3.0),
]


@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_chunks_with_the_state_are_one_call(neuron, cut):
    x = noise(9, 3, 5) * 2
    whole, v = neuron.stream(x)
    first, state = neuron.stream(x[:cut])
    second, last = neuron.stream(x[cut:], state)
    assert 0 < whole.mean() < 1
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(last, v)


def test_the_state_matters():
    x = torch.full((1, 1), 0.9)
    assert LIF(0.5).stream(x)[0].item() == 0
    assert LIF(0.5).stream(x, torch.full((1,), 0.2))[0].item() == 1  # 0.1 + 0.9


@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
def test_a_module_keeps_nothing_between_calls(neuron):
    neuron = deepcopy(neuron)
    neuron.steps = 4
    x = noise(8, 5) * 2
    before = {name: value.clone() for name, value in neuron.state_dict().items()}
    assert torch.equal(neuron(x), neuron(x))
    assert all(torch.equal(value, before[name]) for name, value in neuron.state_dict().items())


def test_forward_is_the_folded_stream():
    x = noise(6, 2, 3)
    neuron = LIF(0.5, steps=6)
    assert torch.equal(neuron(fold(x)), fold(neuron.stream(x)[0]))


@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
def test_static_is_the_same_input_at_each_step(neuron):
    folded, static = deepcopy(neuron), deepcopy(neuron)
    folded.steps = static.steps = 5
    static.static = True
    x = noise(3, 4)
    repeated = folded(torch.cat([x] * 5))
    assert 0 < repeated.mean() < 1
    assert torch.equal(static(x), repeated)


def test_batch_that_steps_do_not_divide_is_refused():
    with pytest.raises(ShapeError, match="7 cannot hold 4"):
        LIF(steps=4)(torch.zeros(7, 3))


def test_state_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match="state"):
        LIF().stream(torch.zeros(2, 4, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
def test_bfloat16_stays_bfloat16(neuron):
    x = noise(6, 3, 5).bfloat16().requires_grad_()
    spikes, v = neuron.stream(x)
    assert spikes.dtype == v.dtype == torch.bfloat16
    spikes.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert set(spikes.unique().tolist()) == {0.0, 1.0}


def test_a_learnt_decay_as_tensor_is_the_number():
    x = noise(7, 4)
    settings = {"threshold": 1.0, "surrogate": Triangle()}
    as_number, _ = multistep(x, decay=0.25, **settings)
    as_tensor, _ = multistep(x, decay=torch.tensor(0.25), **settings)
    assert torch.equal(as_number, as_tensor)
