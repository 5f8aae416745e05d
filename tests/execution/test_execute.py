"""`execute` on whole networks: the same function, on this instance only, and everything else as it was."""

from __future__ import annotations

import copy
import pickle
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regraft
from regraft.execution import execute, plan
from regraft.execution.engines import engine
from regraft.execution.execute import why_not
from regraft.models import dvsgesture, resnet19, resnet_small, tiny_vgg, vgg16
from regraft.neurons import IF, LIF, PLIF, set_steps
from regraft.neurons.spiking import spiking

needs_kernels = pytest.mark.skipif(engine("cpu") is None, reason="the kernels were not built: a C compiler is missing")


class Inverted(nn.Module):
    """A residual block of somebody else, with depthwise convolution and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.pool(F.relu(x + self.deep(x))).flatten(1))


MODELS = {
    "vgg": lambda: vgg16(classes=10, widths=[[24, 32], [48], [70]], steps=3, size=16),
    "tiny": tiny_vgg,
    "resnet": lambda: resnet_small(widths=(8, 16, 24), size=16),
    "resnet19": lambda: resnet19(stem=8, widths=(8, 16, 16), hidden=12, size=16, steps=2),
    "gesture": lambda: dvsgesture(size=32, width=12, hidden=32, steps=5, neuron=partial(PLIF, surrogate="atan")),
    "vote": lambda: dvsgesture(size=32, width=8, hidden=16, steps=3, readout="vote", neuron=IF),
    "spiking": lambda: spiking(Inverted(), steps=3),
}
SHAPES = {"vgg": (4, 3, 16, 16), "tiny": (4, 1, 8, 8), "resnet": (4, 3, 16, 16), "resnet19": (4, 3, 16, 16)}
SHAPES |= {"gesture": (5, 4, 2, 32, 32), "vote": (3, 4, 2, 32, 32), "spiking": (4, 3, 16, 16)}


def made(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A network in double precision, where no spike is near enough to the threshold to flip, its twin, and inputs."""
    torch.manual_seed(5)
    model = MODELS[name]().double()
    return model, copy.deepcopy(model), torch.randn(SHAPES[name], dtype=torch.float64) * 2


def passed(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Logits, gradients, and buffers afterwards, all of one forward and backward pass."""
    model.zero_grad()
    torch.manual_seed(9)  # of dropout
    logits = model(x)
    logits.square().mean().backward()
    grads = [torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [logits.detach(), *grads, *(b.clone() for b in model.buffers())]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, rtol=1e-8, atol=1e-9) for x, y in zip(a, b, strict=True))


@needs_kernels
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_network_computes_what_it_computed(name, training):
    model, twin, x = made(name)
    execution = execute(twin)
    neurons = sum(isinstance(module, LIF) for module in model.modules())
    assert len(execution.segments) == neurons
    assert not any(why_not(segment) for segment in execution.segments)
    model.train(training)
    twin.train(training)
    assert same(passed(model, x), passed(twin, x))


@needs_kernels
def test_segments_are_as_large_as_they_can_be():
    counts = {name: execute(made(name)[1]).segments for name in MODELS}
    norms = {name: [sum(n is not None for n in s.norms) for s in found] for name, found in counts.items()}
    pools = {name: sum(s.pool is not None for s in found) for name, found in counts.items()}
    assert norms["vgg"] == [1, 1, 1, 1]
    assert norms["resnet"] == [1, 1, 1, 1, 2, 1, 2]
    assert norms["spiking"] == [1, 1, 0]
    assert norms["gesture"] == [1, 1, 1, 1, 1, 0]
    assert pools == {"vgg": 3, "tiny": 2, "resnet": 0, "resnet19": 0, "gesture": 5, "vote": 5, "spiking": 1}
    assert [len(s.norms) for s in counts["spiking"]] == [1, 1, 2], "a sum of two, one of them spikes already"


def test_everything_else_stays_as_it_was():
    model, twin, _ = made("resnet")
    execute(twin)
    assert type(twin) is type(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in model.named_modules()]
    assert repr(twin) == repr(model)
    assert "forward" not in vars(model.features), "another instance is not touched"


def test_detach_gives_back_what_was_there():
    _, twin, x = made("vgg")
    before = passed(twin, x)
    execution = execute(twin)
    execution.detach()
    assert not any("forward" in vars(module) for module in twin.modules())
    for buffer, old in zip(twin.buffers(), made("vgg")[0].buffers(), strict=True):
        buffer.copy_(old)
    assert all(torch.equal(a, b) for a, b in zip(before, passed(twin, x), strict=True))


@needs_kernels
def test_executing_again_sees_layers_that_were_put_in():
    _, twin, x = made("tiny")
    old = execute(twin)
    twin.classifier[1] = IF(steps=4, surrogate="atan")
    new = execute(twin)
    assert type(new.segments[-1].neuron) is IF
    other = copy.deepcopy(twin)
    new.detach()
    assert same(passed(other, x), passed(twin, x))
    old.detach()  # nothing of it is left to undo


@needs_kernels
def test_copies_and_pickles_are_executed_too_and_share_nothing():
    _, twin, x = made("resnet")
    execute(twin)
    expected = passed(copy.deepcopy(twin), x)
    restored = pickle.loads(pickle.dumps(twin))
    for other in (copy.deepcopy(twin), restored):
        own = {id(module) for module in other.modules()}
        forwards = [vars(module)["forward"] for module in other.modules() if "forward" in vars(module)]
        assert forwards
        for forward in forwards:
            assert all(id(module) in own for s in forward.program.segments for module in s.modules)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1)
        assert same(passed(other, x), expected)


@pytest.mark.parametrize("where", ["neuron", "norm", "pool", "container"])
def test_hooks_are_called_with_what_they_would_see(where):
    model, twin, x = made("tiny")
    execute(twin)
    seen = []
    for net in (model, twin):
        place = {
            "neuron": net.features[2],
            "norm": net.features[1],
            "pool": net.features[6],
            "container": net.classifier,
        }[where]
        place.register_forward_hook(lambda module, args, out: seen.append((args[0].detach(), out.detach())))
    assert same(passed(model, x), passed(twin, x))
    assert len(seen) == 2
    assert torch.allclose(seen[0][0], seen[1][0])
    assert torch.allclose(seen[0][1], seen[1][1])


def test_a_block_of_somebody_else_keeps_its_forward():
    """Whose branches nobody knows: only the neurons in it are executed."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.neuron = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), LIF(steps=2)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.neuron(self.norm(self.conv(x))) if self.calls % 2 else x

    net = nn.Sequential(nn.Conv2d(4, 4, 1), LIF(steps=2), Block()).double()
    twin = copy.deepcopy(net)
    execution = execute(twin)
    assert [len(s.modules) for s in execution.segments] == [1, 1]
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    for _ in range(2):
        assert same(passed(net, x), passed(twin, x))
    assert twin[2].calls == 2


def test_an_own_surrogate_is_computed_by_its_modules():
    class Own:
        def primitive(self, z):
            return z

        def derivative(self, z):
            return torch.ones_like(z)

    net = nn.Sequential(nn.Linear(4, 8), LIF(surrogate=Own(), steps=2)).double()
    twin = copy.deepcopy(net)
    execution = execute(twin)
    assert "surrogate" in str(execution)
    x = torch.randn(6, 4, dtype=torch.float64)
    assert same(passed(net, x), passed(twin, x))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_another_number_of_steps_counts_at_once(steps):
    model, twin, x = made("resnet")
    execute(twin)
    for net in (model, twin):
        set_steps(net, steps)
    assert same(passed(model, x), passed(twin, x))


def test_what_does_not_fit_fails_as_it_did():
    model, twin, _ = made("tiny")
    execute(twin)
    for bad in (torch.randn(2, 3, 8, 8).double(), torch.randn(0, 1, 8, 8).double(), torch.randn(1, 1, 4, 4).double()):
        told = []
        for net in (model, twin):
            try:
                told.append(list(net(bad).shape))
            except Exception as error:
                told.append((type(error), str(error)))
        assert told[0] == told[1]


@needs_kernels
def test_under_autocast_only_what_is_stored_is_rounded():
    """Also where a hook asks for the modules themselves: training and evaluation see the same numbers."""
    torch.manual_seed(0)
    model = vgg16(classes=10, widths=[[16, 16], [32]], steps=4, size=16)
    execute(model)
    x = torch.randn(8, 3, 16, 16)
    model.train()(x)
    outs = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outs.append(model.eval()(x))
        handles = [m.register_forward_hook(lambda *_: None) for m in model.modules() if isinstance(m, LIF)]
        outs.append(model(x))
    assert handles
    assert outs[0].dtype == torch.bfloat16
    assert (outs[0] - outs[1]).float().abs().max() <= 0.02 * outs[0].float().abs().max()


def test_functional_calls_use_the_weights_that_they_are_given():
    _, twin, x = made("vgg")
    execute(twin)
    weights = {name: p.detach() * 1.5 for name, p in twin.named_parameters()}
    given = torch.func.functional_call(twin.eval(), weights, (x,))
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(weights[name])
    assert torch.allclose(given, twin(x))


@needs_kernels
def test_the_table_says_how_each_segment_is_computed():
    execution = regraft.execute(tiny_vgg())
    pooled = "norm -> LIF -> pool: fused"
    assert str(execution).splitlines() == ["norm -> LIF: fused", pooled, pooled, "input -> LIF: fused"]
    assert str(execute(nn.Linear(2, 2))) == "no neuron of regraft was found"


def test_nothing_is_fused_without_kernels(monkeypatch):
    model, twin, x = made("vgg")
    execution = execute(twin)
    monkeypatch.setattr(sys.modules["regraft.execution.execute"], "engine", lambda device: None)
    told = set(str(execution).splitlines())
    assert told == {f"norm -> LIF{pool}: plain: no kernels for cpu" for pool in ("", " -> pool")}
    assert same(passed(model, x), passed(twin, x))


def test_a_program_lets_go_of_what_nobody_reads_again():
    """Or each layer's output would live until the end of the forward pass."""
    _, program = next(iter(plan.plan(made("vgg")[0])))
    done = [slot for call in program.calls for slot in call.done]
    assert sorted(done) == list(range(program.slots - 1))
