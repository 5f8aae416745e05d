"""Neurons on blocks of 16 images, and small networks of them: any T and N, all resets and surrogates.

In double precision they are the modules to 1e-12; in single precision spikes are equal away from the threshold.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import regraft
from regraft.execution import Calibration, blocked, execute, paths, sparse
from regraft.execution.blocked import Spikes
from regraft.execution.engines import engine
from regraft.execution.fire import fire_of
from regraft.neurons import IF, LIF, PLIF
from regraft.neurons.spiking import spiking
from regraft.neurons.surrogate import SURROGATES

pytestmark = pytest.mark.skipif(engine("cpu") is None, reason="the kernels were not built: a C compiler is missing")
F64 = torch.float64
WINS = Calibration("always", {"convolution fp32": ((1, 1.0),), "linear fp32": ((1, 1.0),)})
STEPS = st.one_of(st.integers(1, 6), st.sampled_from([7, 8, 16, 31, 33, 64]))
IMAGES = st.sampled_from([1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 33])


@st.composite
def neurons(draw: st.DrawFn) -> LIF:
    kind: Any = draw(st.sampled_from([LIF, LIF, PLIF, IF]))
    reset = draw(st.sampled_from(["hard", "soft"]))
    given_: dict[str, Any] = {
        "surrogate": draw(st.sampled_from(sorted(SURROGATES))),
        "reset": reset,
        "subtract": draw(st.sampled_from([None, 0.7])) if reset == "soft" else None,
        "detach_reset": draw(st.booleans()),
        "threshold": draw(st.sampled_from([1.0, 0.6])),
    }
    if kind is not IF:
        given_ |= (
            {"tau": draw(st.sampled_from([2.0, 5.0]))} if kind is PLIF else {"decay": draw(st.sampled_from([0.5, 0.8]))}
        )
        given_["decay_input"] = draw(st.booleans())
    return kind(**given_)


def near(found: Tensor | None, expected: Tensor | None) -> bool:
    assert found is not None
    assert expected is not None
    return float((found - expected).norm()) <= 1e-12 * (1 + float(expected.norm()))


def spikes_in_blocks(x: Tensor, steps: int, halo: int) -> Spikes:
    real = blocked.reals(x, steps)
    bits = blocked.empty_sets(real.form, halo)
    blocked.exchange("block_spikes", real.form, x.detach(), bits, halo)
    return Spikes(real.form, bits, halo, real.y)


def fired(neuron: LIF, terms: list[Tensor], added: bool, pool: bool, halo: int) -> Tensor:
    """Spikes `[T*N, C, H, W]` of a neuron on blocks; the second term may be spikes itself."""
    how = fire_of(neuron)
    assert how is not None
    given_ = [blocked.reals(x, how.steps // (how.steps if how.repeat else 1)) for x in terms[: 1 if added else None]]
    if added:
        given_.append(spikes_in_blocks(terms[1], how.steps, halo))
    none: list[Any] = [(None, None, None)] * len(terms)
    return blocked.plain(sparse.fire(how, neuron.decay, given_, none, pool=pool, halo=halo))


@settings(max_examples=150, deadline=None)
@given(
    neurons(), STEPS, IMAGES, st.sampled_from(["y", "repeat", "yy", "ys"]), st.booleans(), st.integers(0, 1), st.data()
)
def test_neurons_on_blocks_are_the_modules(neuron, steps, images, terms, pool, halo, data):
    """One current, the same at each step, the sum of two, or of a current and spikes; then perhaps a pool."""
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    channels, high, wide = (data.draw(st.integers(1, most)) for most in (3, 5, 19))
    high, wide = (2 * high, 2 * wide) if pool else (high, wide)
    neuron = neuron.double()
    neuron.steps, neuron.static = steps, terms == "repeat"
    rows = images if terms == "repeat" else steps * images
    plain = [torch.randn(rows, channels, high, wide, dtype=F64) * 1.5]
    if len(terms) == 2:
        plain.append((torch.rand(plain[0].shape) < 0.3).double() if terms == "ys" else torch.randn_like(plain[0]))
    inputs = [[x.clone().requires_grad_() for x in plain] for _ in range(2)]
    twin = copy.deepcopy(neuron)
    expected = neuron(sum(inputs[0]))
    expected = F.max_pool2d(expected, 2) if pool else expected
    found = fired(twin, inputs[1], terms == "ys", pool, halo)
    assert torch.equal(found, expected)
    g = torch.randn_like(expected)
    expected.backward(g)
    found.backward(g)
    assert all(near(b.grad, a.grad) for a, b in zip(*inputs, strict=True))
    for a, b in zip(neuron.parameters(), twin.parameters(), strict=True):
        assert near(b.grad, a.grad)


@pytest.mark.parametrize("steps", [1, 4, 16, 64])
@pytest.mark.parametrize("surrogate", ["triangle", "atan", "sigmoid"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_in_single_precision_spikes_are_equal_away_from_the_threshold(steps, surrogate, reset):
    """Where no threshold within a thousandth would change a spike, nor one of single precision; gradients to 2e-5."""
    torch.manual_seed(0)
    x = torch.randn(steps * 20, 3, 8, 8)
    subtract = 1.0 if reset == "soft" else None

    def exactly(threshold: float) -> tuple[Tensor, Tensor]:
        neuron = LIF(threshold=threshold, surrogate=surrogate, reset=reset, subtract=subtract, steps=steps)
        into = x.double().requires_grad_()
        spikes = neuron(into)
        spikes.backward(g.double())
        assert into.grad is not None
        return spikes.detach(), into.grad

    g = torch.randn_like(x)
    low, (expected, gradient), high = (exactly(threshold) for threshold in (0.999, 1.0, 1.001))
    away = ((low[0] == expected) & (high[0] == expected)).view(steps, 20, 3, 8, 8).all(0).repeat(steps, 1, 1, 1, 1)
    away = away.view_as(expected)
    assert away.double().mean() > 0.5
    into = x.clone().requires_grad_()
    found = fired(LIF(surrogate=surrogate, reset=reset, subtract=subtract, steps=steps), [into], False, False, 0)
    found.backward(g)
    assert into.grad is not None
    assert torch.equal(found.double()[away], expected[away])
    assert (into.grad.double() - gradient)[away].norm() <= 2e-5 * gradient[away].norm()


@settings(max_examples=60, deadline=None)
@given(neurons(), STEPS, IMAGES, st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from([1, 2]), st.booleans(), st.data())
def test_gradients_of_connections_are_those_of_the_plain_network(neuron, steps, images, density, stride, pool, data):
    """Normalisation, neuron and pool between sparse layers, from the input to the loss."""
    seed = data.draw(st.integers(0, 10**6))
    torch.manual_seed(seed)
    side = data.draw(st.sampled_from([6, 8, 10]))
    layers: list[nn.Module] = [nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.MaxPool2d(2)] * pool + [nn.Conv2d(6, 5, 3, stride, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU()]
    left = math.ceil(side / (2 if pool else 1) / stride)
    layers += [nn.Flatten(), nn.Linear(5 * left * left, 4)]
    net = spiking(nn.Sequential(*layers), steps=steps, neuron=lambda: copy.deepcopy(neuron)).double()
    twin = copy.deepcopy(net)
    x = torch.randn(images, 2, side, side, dtype=F64) * 2
    gradients, execution = [], None
    for each in (net, twin):
        topology = regraft.Topology(each, max(density, 0.02), "static", steps=10, seed=seed)
        if density == 0:  # an empty layer
            weight = each.get_parameter("3.weight") if not pool else each.get_parameter("4.weight")
            weight.data.zero_()
        with pytest.MonkeyPatch.context() as patch:  # few images leave most lanes empty, and would be computed densely
            patch.setattr(paths, "boundary", lambda *_: 1.0)
            execution = execute(each, topology, WINS) if each is twin else None
            loss = F.cross_entropy(each(x).mean(0), torch.arange(images) % 4)
        loss.backward()
        gradients.append({name: p.grad * topology.masks.get(name, 1.0) for name, p in each.named_parameters()})
    assert execution is not None
    assert sum(not why for why in execution.choices.values()) > 1
    for name, expected in gradients[0].items():
        assert near(gradients[1][name], expected), name
