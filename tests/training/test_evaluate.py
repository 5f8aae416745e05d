"""Evaluation looks and leaves no trace; re-estimation sets statistics to plain averages and touches no weight."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regraft.errors import SilentLayerWarning, UsageError
from regraft.neurons import LIF
from regraft.training.evaluate import Evaluation, evaluate, reestimate, warn_of_silence

BATCHES = [(torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * n, torch.arange(n) % 2) for n in (5, 2, 4)]


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), LIF(), nn.Dropout(0.5), nn.Linear(6, 2))


def test_the_figures_are_means_over_samples_not_over_batches(net):
    found = evaluate(net, BATCHES, rates=True)
    net.eval()
    x, y = (torch.cat(parts) for parts in zip(*BATCHES, strict=True))
    with torch.no_grad():
        logits = net(x)
        spikes = net[:3](x)
    assert found.samples == 11
    assert found.accuracy == int((logits.argmax(1) == y).sum()) / 11
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-6)
    assert found.rates == {"2": pytest.approx(float(spikes.mean()))}
    assert evaluate(net, BATCHES).rates == {}


def test_logits_of_several_steps_are_averaged_first(net):
    class Stepwise(nn.Module):
        def forward(self, x):
            return torch.stack([x, -3 * x])

    found = evaluate(Stepwise(), [(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([1, 1]))])
    assert found.accuracy == 0.5
    assert found.loss == pytest.approx(
        float(F.cross_entropy(torch.tensor([[-2.0, -1.0], [-1.0, -2.0]]), torch.tensor([1, 1])))
    )


def test_forward_is_what_runs_the_model(net):
    def shifted(model, x):
        return model(x) + torch.tensor([1e6, 0.0])

    assert evaluate(net, BATCHES, forward=shifted).accuracy == sum(int((y == 0).sum()) for _, y in BATCHES) / 11


def test_no_trace_is_left(net):
    net.train()
    net[1].eval()  # frozen by its owner
    before = {name: t.clone() for name, t in net.state_dict().items()}
    random = torch.get_rng_state()
    evaluate(net, BATCHES, rates=True)
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True]
    assert not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)

    with pytest.raises(RuntimeError):
        evaluate(net, [(torch.ones(2, 99), torch.zeros(2, dtype=torch.long))], rates=True)
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True]
    assert not any(m._forward_hooks for m in net.modules())


def test_a_neuron_that_keeps_its_state_can_be_trained_afterwards():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.state = nn.Linear(3, 2), torch.ones(2)

        def forward(self, x):
            out = self.layer(x) * self.state
            self.state = out.detach().mean(0)
            return out

    net = Stateful()
    evaluate(net, BATCHES)
    net(BATCHES[0][0]).sum().backward()
    assert net.layer.weight.grad is not None


def test_nothing_to_look_at_is_refused(net):
    with pytest.raises(UsageError, match="no samples"):
        evaluate(net, [])


def test_silence_is_told_once_a_layer():
    found = Evaluation(1.0, 0.5, 4, {"loud": 0.1, "mute": 0.0})
    with pytest.warns(SilentLayerWarning, match="layer mute never fired") as heard:
        known = warn_of_silence(found, [])
    assert len(heard) == 1
    assert known == ["mute"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_of_silence(found, known) == known
        assert warn_of_silence(None, known) == known


# --- normalisation ----------------------------------------------------------------------------------------------------


def test_reestimated_statistics_are_the_plain_average_over_batches():
    layer = nn.BatchNorm1d(3, momentum=0.3)
    net = nn.Sequential(nn.Dropout(0.9), layer)
    for x, _ in BATCHES:
        net(x)  # running averages of something else
    reestimate(net, BATCHES)
    assert torch.allclose(layer.running_mean, torch.stack([x.mean(0) for x, _ in BATCHES]).mean(0))
    assert torch.allclose(layer.running_var, torch.stack([x.var(0, unbiased=True) for x, _ in BATCHES]).mean(0))
    assert int(layer.num_batches_tracked) == 3
    assert layer.momentum == 0.3


def test_a_second_layer_sees_what_the_first_gives_in_training(net):
    deep = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    reestimate(deep, BATCHES)
    seen = [deep[1](F.batch_norm(x, None, None, training=True)).mean(0) for x, _ in BATCHES]
    assert torch.allclose(deep[2].running_mean, torch.stack(seen).mean(0), atol=1e-6)


@pytest.mark.parametrize("mode", [True, False])
def test_reestimation_changes_no_weight_and_no_mode(net, mode):
    net.train(mode)
    net[3].train(not mode)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    modes = [m.training for m in net.modules()]
    reestimate(net, BATCHES)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())
    assert [m.training for m in net.modules()] == modes


def test_reestimation_of_nothing_is_refused_and_keeps_the_statistics(net):
    net(BATCHES[0][0])
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(UsageError, match="no batch"):
        reestimate(net, iter([]))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert net[1].momentum == 0.1


def test_a_model_without_normalisation_is_left_alone():
    def never():
        raise AssertionError("no batch was needed")
        yield

    reestimate(nn.Linear(3, 2), never())


def test_forward_runs_the_model_in_reestimation_too():
    layer = nn.BatchNorm1d(3)
    reestimate(layer, BATCHES, forward=lambda model, x: model(x + 100))
    assert (layer.running_mean > 50).all()
