"""Layers over existing connections and neurons on blocks, against torch's dense layers: exactly in double precision."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import regraft
from regraft.execution import Calibration, blocked, execute, paths, sparse
from regraft.execution import pattern as patterns
from regraft.execution.blocked import Spikes
from regraft.execution.calibration import boundary
from regraft.execution.engines import engine
from regraft.execution.fire import fire_of
from regraft.execution.pattern import Geometry, Pattern
from regraft.execution.sparse import layer, linear, linear_geometry, moments
from regraft.models import dvsgesture, resnet19, resnet_small, vgg16
from regraft.neurons import IF, LIF, PLIF
from regraft.neurons.spiking import spiking

pytestmark = pytest.mark.skipif(engine("cpu") is None, reason="the kernels were not built: a C compiler is missing")
F64 = torch.float64
WINS = Calibration(
    "whatever is sparser than the share of filled lanes", {"convolution fp32": ((1, 1.0),), "linear fp32": ((1, 1.0),)}
)


def spikes_of(x: torch.Tensor, steps: int, halo: int) -> Spikes:
    """A plain tensor of 0 and 1, in blocks; its gradient comes back through `reals`."""
    real = blocked.reals(x, steps)
    bits = blocked.empty_sets(real.form, halo)
    blocked.exchange("block_spikes", real.form, x.detach(), bits, halo)
    return Spikes(real.form, bits, halo, real.y)


@st.composite
def convolutions(draw: st.DrawFn) -> dict:
    kernel = draw(st.sampled_from([1, 2, 3, 5]))
    dilation = draw(st.sampled_from([1, 1, 2]))
    padding = draw(st.integers(0, kernel))
    room = dilation * (kernel - 1) + 1 - 2 * padding
    side = st.integers(max(1, room), max(1, room) + 17)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return {
        "steps": draw(st.integers(1, 3)),
        "images": draw(st.sampled_from([1, 2, 3, 4, 8, 15, 16, 17, 33])),
        "inputs": groups * draw(st.integers(1, 4)),
        "outputs": groups * draw(st.integers(1, 4)),
        "size": (draw(side), draw(side)),
        "kernel": kernel,
        "stride": draw(st.sampled_from([1, 1, 2])),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "density": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "spikes": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "halo": padding + draw(st.integers(0, 1)),
        "learnt": draw(st.sampled_from(["pattern", "some", "all"])),
        "band": draw(st.sampled_from([1, 3, 16])),
    }


@settings(max_examples=120, deadline=None)
@given(convolutions(), st.integers(0, 10**6))
def test_a_layer_is_the_convolution_with_zeros(c, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(
        c["inputs"], c["outputs"], c["kernel"], c["stride"], c["padding"], c["dilation"], c["groups"], c["bias"]
    ).to(F64)
    mask = torch.rand(conv.weight.shape) < c["density"]
    conv.weight.data *= mask
    shape = (c["steps"] * c["images"], c["inputs"], *c["size"])
    x = (torch.rand(shape) < 0.3).to(F64) if c["spikes"] else torch.randn(shape, dtype=F64)
    twin, x2 = copy.deepcopy(conv), x.clone().requires_grad_()
    expected = conv(x.requires_grad_())
    geometry = Geometry(
        c["inputs"], *c["size"], c["outputs"], (c["kernel"],) * 2, c["stride"], c["padding"], c["dilation"],
        c["groups"], c["halo"],
    )  # fmt: skip
    given_x = spikes_of(x2, c["steps"], c["halo"]) if c["spikes"] else blocked.reals(x2, c["steps"])
    shift = torch.full((c["outputs"],), 0.3, dtype=F64)
    learnt = {"pattern": mask, "some": mask | (torch.rand(mask.shape) < 0.2), "all": torch.ones_like(mask)}[c["learnt"]]
    with pytest.MonkeyPatch.context() as patch:  # bands that layers as small as these have, too
        patch.setattr(patterns, "BAND", c["band"])
        patch.setattr(patterns, "FEW", 0)
        pattern, asked = Pattern(mask, geometry), "all" if c["learnt"] == "all" else Pattern(learnt, geometry)
    found = layer(given_x, twin.weight, twin.bias, pattern, learnt=asked, shift=shift)
    plain = blocked.plain(found)
    assert torch.allclose(plain, expected, rtol=1e-12, atol=1e-12)
    mean, var, _ = moments(found, 0.0)
    v, m = torch.var_mean(expected, (0, 2, 3), correction=0)
    assert torch.allclose(mean, m, atol=1e-10)
    assert torch.allclose(var, v, atol=1e-9)
    g = torch.randn_like(expected)
    expected.backward(g)
    plain.backward(g)
    assert conv.weight.grad is not None
    assert torch.allclose(twin.weight.grad, conv.weight.grad * learnt, rtol=1e-12, atol=1e-12)
    assert torch.allclose(x2.grad, x.grad, rtol=1e-12, atol=1e-12)
    if c["bias"]:
        assert torch.allclose(twin.bias.grad, conv.bias.grad, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1,), (16,), (5, 3), (2, 130), (300,)]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.1, 0.6]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_a_linear_layer_is_the_product_with_zeros(shape, inputs, outputs, density, bias, owed, seed):
    torch.manual_seed(seed)
    layer_ = nn.Linear(inputs, outputs, bias).to(F64)
    mask = torch.rand(layer_.weight.shape) < density
    layer_.weight.data *= mask
    twin, x = copy.deepcopy(layer_), torch.randn(*shape, inputs, dtype=F64, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    geometry = linear_geometry(inputs, outputs, math.prod(shape))
    expected = layer_(x)
    found = linear(x2, twin.weight, twin.bias, Pattern(mask, geometry), learnt="all" if owed else None)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(expected)
    expected.backward(g)
    found.backward(g)
    assert torch.allclose(twin.weight.grad, layer_.weight.grad * (1 if owed else mask), rtol=1e-12, atol=1e-12)
    assert torch.allclose(x2.grad, x.grad, rtol=1e-12, atol=1e-12)
    if bias:
        assert torch.allclose(twin.bias.grad, layer_.bias.grad, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 5]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2]),
    st.tuples(st.sampled_from([4, 8, 17, 30, 61]), st.sampled_from([4, 9, 16, 33, 700])),
    st.tuples(st.integers(1, 5), st.sampled_from([1, 7, 17, 33])),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2, 5, 17]),
    st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    st.integers(0, 2),
    st.integers(0, 10**6),
)
def test_gradients_of_all_weights_are_those_of_the_dense_product(
    kernel, stride, dilation, size, channels, groups, images, rate, more, seed
):
    """Several windows an image and several images a window, more than 16 outputs, groups that share a vector."""
    torch.manual_seed(seed)
    inputs, outputs = (groups * each for each in channels)
    assume(min(size) > dilation * (kernel - 1))
    padding = max(0, dilation * (kernel - 1) // 2 + more - 1)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False).to(F64)
    x = (torch.rand(images, inputs, *size) < rate).to(F64)
    y = conv(x)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, [conv.weight], g)
    geometry = Geometry(inputs, *size, outputs, (kernel,) * 2, stride, padding, dilation, groups, padding + more)
    pattern = Pattern(torch.zeros(conv.weight.shape) > 0, geometry)
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            current = layer(spikes_of(x, 1, padding + more), conv.weight, None, pattern, learnt="all")
            (found,) = torch.autograd.grad(blocked.plain(current), [conv.weight], g)
        finally:
            torch.set_num_threads(before)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_what_growth_asks_for_leaves_the_gradients_of_connections_as_they_are():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1, bias=False)
    mask = torch.rand(conv.weight.shape) < 0.2
    conv.weight.data *= mask
    x = (torch.rand(40, 6, 9, 7) < 0.3).float()
    pattern, found = Pattern(mask, Geometry(6, 9, 7, 8, (3, 3), 1, 1, 1, 1, 1)), []
    for learnt in (pattern, "all"):
        conv.weight.grad = None
        y = layer(spikes_of(x, 2, 1), conv.weight, None, pattern, learnt=learnt)
        blocked.plain(y).square().sum().backward()
        found.append(conv.weight.grad)
    assert torch.equal(*(grad[mask] for grad in found))
    assert not bool(found[0][~mask].any())
    assert bool((found[1][~mask] != 0).all())


def test_into_blocks_and_out_again_is_nothing():
    for images, steps in ((1, 1), (16, 2), (19, 3), (8, 3), (2, 9), (1, 40)):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(images * steps, 5, 6, 7).contiguous(memory_format=form).requires_grad_()
            out = blocked.plain(blocked.reals(x, steps))
            assert torch.equal(out, x)
            g = torch.randn_like(out)
            out.backward(g)
            assert torch.equal(x.grad, g)
            s = (x.detach() > 0).float()
            assert torch.equal(blocked.plain(spikes_of(s, steps, 1)), s)


def test_lanes_without_an_image_stay_empty():
    x = (torch.rand(2 * 5, 4, 6, 6) < 0.5).float()
    found = spikes_of(x, 2, 1)
    assert found.form.run == (5, 1)
    assert not bool((found.bits & ~0b11111).any())


def test_steps_of_few_images_share_a_block():
    """8 images of 5 steps are 40 samples, in 3 blocks of 16; 7 images take a block a step."""
    assert blocked.Form(5, 8, 1, 1, 1).blocks == 3
    assert blocked.Form(5, 7, 1, 1, 1).blocks == 5
    x = (torch.rand(3 * 8, 4, 6, 6) < 0.5).float()
    sets = spikes_of(x, 3, 0).bits[: 2 * 6 * 4 * 6].view(2, 6, 4, 6).permute(0, 2, 1, 3)
    lanes = torch.stack([(sets >> lane) & 1 for lane in range(16)], 1).flatten(0, 1)
    assert torch.equal(lanes[:24].float(), x)
    assert not bool(lanes[24:].any())


# --- whole networks ---------------------------------------------------------------------------------------------------


def mixed() -> nn.Module:
    """Biases, a neuron without normalisation, an average pooling between, stride 2."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    layers += [nn.AvgPool2d(2), nn.Conv2d(8, 12, 3, 2), nn.BatchNorm2d(12), nn.ReLU()]
    return spiking(nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 49, 10)), steps=3)


SMALL = {"widths": (8, 12, 16), "size": 16, "steps": 2}
NETWORKS = {
    "vgg": (lambda: vgg16(classes=10, widths=[[8, 8], [12, 12], [16]], steps=3, size=16), (20, 3, 16, 16)),
    "resnet": (lambda: resnet_small(**SMALL), (6, 3, 16, 16)),
    "resnet19": (lambda: resnet19(**SMALL, stem=8, hidden=12, neuron=IF), (18, 3, 16, 16)),
    "plif": (lambda: resnet_small(**SMALL, neuron=partial(PLIF, surrogate="atan")), (6, 3, 16, 16)),
    "gesture": (
        lambda: dvsgesture(size=32, width=12, hidden=16, steps=4, neuron=partial(LIF, reset="soft")),
        (4, 5, 2, 32, 32),
    ),
    "mixed": (mixed, (5, 3, 32, 32)),
    # Steps that share a block: with the decay's gradient, residual spikes and currents, a last block half full.
    "plif-8": (lambda: resnet_small(**SMALL, neuron=partial(PLIF, surrogate="atan", decay_input=True)), (8, 3, 16, 16)),
    "vgg-4": (lambda: vgg16(classes=10, widths=[[8, 8], [12, 12], [16]], steps=6, size=16), (4, 3, 16, 16)),
    "resnet19-2": (lambda: resnet19(**SMALL, stem=8, hidden=12, neuron=IF), (2, 3, 16, 16)),
    "gesture-1": (
        lambda: dvsgesture(size=32, width=12, hidden=16, steps=5, neuron=partial(LIF, reset="soft")),
        (5, 1, 2, 32, 32),
    ),
}


def pair(name: str, density: float = 0.2, rule: str = "rigl"):
    """A network and its twin, each with a wiring and an optimiser; the twin goes over existing connections."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    made = []
    model = make().double()
    for net in (model, copy.deepcopy(model)):
        topology = regraft.Topology(net, density, rule, steps=100, every=3, seed=1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        topology.attach(optimizer)
        made.append((net, topology, optimizer))
    execution = execute(made[1][0], made[1][1], WINS)
    return made, execution, (torch.randn(shape, dtype=F64) * 2)


def trained(made, x, steps: int) -> list[list[float]]:
    losses: list[list[float]] = []
    for net, _, optimizer in made:
        losses.append([])
        torch.manual_seed(4)  # of dropout
        for _ in range(steps):
            loss = F.cross_entropy(net(x).mean(0), torch.arange(x.shape[-4]) % 10)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("rule", ["rigl", "set", "granet", "gse"])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_over_existing_connections_is_training(name, rule):
    """Through rewiring events: the same losses, wiring, statistics and logits."""
    made, execution, x = pair(name, rule=rule)
    (net, topology, _), (twin, other, _) = made
    assert any(f.paths is not None for f in execution.forwards)
    dense, sparse = trained(made, x, 7)
    assert sparse == pytest.approx(dense, rel=1e-9)
    assert len(other.events) == 2
    assert other.mask_hash == topology.mask_hash
    state = twin.state_dict()
    for key, value in net.state_dict().items():
        assert torch.allclose(state[key].double(), value.double(), atol=1e-8), key
    net.eval()
    twin.eval()
    assert torch.allclose(net(x), twin(x), atol=1e-8)


def test_gradients_in_evaluation_mode_are_those_of_the_modules():
    """Normalisation is by running statistics, which do not depend on the input."""
    made, _, x = pair("resnet")
    trained(made, x, 1)
    grads = []
    for net, _, _ in made:
        net.eval()
        net(x).square().mean().backward()
        grads.append([p.grad for p in net.parameters()])
        masks = made[len(grads) - 1][1].masks
        for name, p in net.named_parameters():
            p.grad.mul_(masks.get(name, torch.ones(())))
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(*grads, strict=True))


def test_a_sampling_rule_asks_for_the_gradients_of_its_sample_alone(monkeypatch):
    made, _, x = pair("vgg", rule="gse")
    trained(made, x, 2)
    real, dense = sparse._dense_gradient, []
    monkeypatch.setattr(sparse, "_dense_gradient", lambda *args: dense.append(args) or real(*args))
    _, (twin, topology, _) = made
    twin(x).square().mean().backward()
    parameters, asked = dict(twin.named_parameters()), 0
    for name, candidates in topology.candidates.items():
        grad = parameters[name].grad != 0
        asked += int((grad & candidates).sum())
        assert not bool((grad & ~candidates & ~topology.masks[name]).any())
    assert asked
    assert len(dense) == sum(bool((topology.masks[n] | c).all()) for n, c in topology.candidates.items()) < 3


@pytest.mark.parametrize("behind", [0.0, 0.5])
def test_a_whole_first_layer_goes_along_where_the_next_one_goes_over_connections(behind):
    torch.manual_seed(0)
    made = []
    model = vgg16(classes=10, widths=[[8, 8], [16]], steps=3, size=16).double()
    for net in (model, copy.deepcopy(model)):
        topology = regraft.Topology(net, 0.2, "rigl", steps=100, every=3, seed=1, exclude=["features.0.weight"])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        topology.attach(optimizer)
        made.append((net, topology, optimizer))
    table = Calibration("few inputs at any density", {"convolution fp32": ((27, 1.0), (28, behind))})
    execution = execute(made[1][0], made[1][1], table)
    dense, found = trained(made, torch.randn(16, 3, 16, 16, dtype=F64) * 2, 7)
    assert found == pytest.approx(dense, rel=1e-9)
    assert made[0][1].mask_hash == made[1][1].mask_hash
    assert (not execution.choices["features.0.weight"]) is bool(behind)
    assert not bool(behind) or not execution.choices["features.3.weight"]


def test_gradients_accumulate():
    """Over two backward passes, each parameter in memory of its own."""
    made, _, x = pair("resnet")
    grads = []
    for net, topology, _ in made:
        for _ in range(2):
            net(x).square().mean().backward()
        topology.mask_gradients()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(*grads, strict=True))


def test_it_really_goes_over_existing_connections(monkeypatch):
    """And densely again where there are too many of them."""
    (_, (twin, topology, _)), execution, x = pair("vgg", density=0.2)
    table = Calibration("0.3 where all lanes are filled", {"convolution fp32": ((1, 0.3),)})
    execution.use(table)
    seen: list[int] = []
    real = paths.layer
    monkeypatch.setattr(paths, "layer", lambda *args, **kwargs: seen.append(len(args[3])) or real(*args, **kwargs))
    twin(x)
    counts = [(int(mask.sum()), mask.numel()) for mask in topology.masks.values() if mask.dim() == 4]
    assert seen == [some for some, of in counts if some <= boundary(table, "convolution", "fp32", 9, 20 / 32) * of]
    over = [name for name, why in execution.choices.items() if not why]
    assert over == [name for name, mask in topology.masks.items() if int(mask.sum()) in seen]
    assert 0 < len(seen) < len(counts)
    seen.clear()
    for mask in topology.masks.values():
        mask.fill_(True)
    twin(x)
    assert not seen
    assert all(execution.choices.values())


class _Same(nn.Bilinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x, x)


def test_what_cannot_go_over_connections_says_why():
    layers = [nn.Conv2d(4, 4, 3, padding=1), LIF(steps=2), nn.Conv2d(4, 4, 3, 3), LIF(steps=2)]
    layers += [nn.Conv2d(4, 4, 3, padding="same"), LIF(steps=2), nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Flatten()]
    net = nn.Sequential(nn.Sequential(*layers), nn.Linear(36, 2), _Same(2, 2, 2))
    wrapped = nn.Module()
    wrapped.inner = net
    wrapped.own = nn.Linear(4, 4)
    execution = execute(wrapped, regraft.Topology(wrapped, 0.1, "static", include=["inner.2.weight"]), WINS)
    net(torch.randn(2 * 16, 4, 9, 9))
    said = execution.choices
    assert said.pop("inner.0.0.weight") == said.pop("inner.1.weight") == ""
    for key, part in {
        "inner.0.2.weight": "stride (3, 3)",
        "inner.0.4.weight": "padding 'same'",
        "inner.0.6.weight": "not a neuron alone reads it",
        "inner.2.weight": "_Same is neither Conv2d nor Linear",
        "own.weight": "not called yet",
    }.items():
        assert part in said.pop(key), key
    assert not said
    assert "inner.0.2.weight: dense: stride (3, 3)" in str(execution)


def test_hooks_are_called_with_what_they_would_see():
    made, _, x = pair("resnet")
    seen: list[list[torch.Tensor]] = [[], []]
    for (net, _, _), into in zip(made, seen, strict=True):
        for module in net.modules():
            if isinstance(module, nn.Conv2d | LIF):
                module.register_forward_hook(
                    lambda m, args, out, into=into: into.extend([args[0].detach(), out.detach()])
                )
    dense, sparse = trained(made, x, 1)
    assert sparse == pytest.approx(dense, rel=1e-9)
    assert len(seen[0]) == len(seen[1]) > 0
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*seen, strict=True))


def test_copies_keep_the_wiring_of_their_day():
    """A teacher that is a copy of its student goes over the connections that it was copied with."""
    made, _, x = pair("vgg")
    net, topology, _ = made[1]
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    expected = net.eval()(x).detach()
    net.train()
    trained(made[1:], x, 4)
    assert topology.events
    for other in copies:
        assert torch.allclose(other.eval()(x), expected)


def test_in_single_precision_gradients_are_as_near_as_can_be():
    """One layer at a time: a whole network follows the first spike that differs."""
    torch.manual_seed(0)
    for size, stride in ((32, 1), (16, 2), (8, 1), (7, 1)):
        conv = nn.Conv2d(16, 24, 3, stride, 1, bias=False)
        mask = torch.rand(conv.weight.shape) < 0.1
        conv.weight.data *= mask
        x = (torch.rand(2 * 20, 16, size, size) < 0.2).float()
        twin, wide, x2, x3 = copy.deepcopy(conv), copy.deepcopy(conv).double(), x.clone(), x.double()
        g = torch.randn_like(conv(x))
        wide(x3.requires_grad_()).backward(g.double())
        pattern = Pattern(mask, Geometry(16, size, size, 24, (3, 3), stride, 1, 1, 1, 1))
        y = layer(spikes_of(x2.requires_grad_(), 2, 1), twin.weight, None, pattern)
        blocked.plain(y).backward(g)
        for found, expected in ((twin.weight.grad, wide.weight.grad * mask), (x2.grad, x3.grad)):
            assert (found.double() - expected).norm() <= 1e-5 * expected.norm()


def test_the_number_of_threads_changes_no_bit():
    before, found = torch.get_num_threads(), []
    torch.manual_seed(0)
    layers = [LIF(steps=4), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), PLIF(steps=4), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Conv2d(8, 12, 3, 2), nn.BatchNorm2d(12), LIF(steps=4))
    x = torch.randn(4 * 33, 8, 16, 16) * 2
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            net = copy.deepcopy(model)
            topology = regraft.Topology(net, 0.1, "static", steps=10, every=1, seed=1)
            execute(net, topology, WINS)
            net(x).square().sum().backward()
            found.append([p.grad for p in net.parameters()])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


class Own(nn.Module):
    """Somebody's module, whose `forward` nobody can know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fire, self.second = nn.Linear(20, 30), LIF(steps=2), nn.Linear(30, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.fire(self.first(x) if x.sum() else x))


@pytest.mark.parametrize("wins", [True, False])
def test_linear_layers_in_modules_of_somebody_else_go_over_connections(wins):
    torch.manual_seed(0)
    net = Own().double()
    twin, seen = copy.deepcopy(net), []
    topologies = [regraft.Topology(each, 0.2, "static", seed=1) for each in (net, twin)]
    table = WINS if wins else Calibration("never", {})
    execution = execute(twin, topologies[1], table)
    twin.second.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    x = torch.randn(32, 20, dtype=F64) * 3
    assert torch.allclose(net(x), twin(x), atol=1e-10)
    assert (execution.choices["first.weight"] == "") == wins
    assert seen == [(32, 4)]
    execution.detach()
    assert "forward" not in vars(twin.first)


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_a_current_that_is_no_number_does_not_look_like_a_gradient_of_0(reset):
    """Nor does it reach another neuron."""
    x = torch.randn(3 * 5, 2, 4, 4, dtype=F64)
    x[0, 1, 2, 3] = float("nan")
    neuron = LIF(steps=3, reset=reset)
    given, blocks = x.clone().requires_grad_(), x.clone().requires_grad_()
    neuron(given).sum().backward()
    how = fire_of(neuron)
    assert how is not None
    spikes = sparse.fire(how, neuron.decay, [blocked.reals(blocks, 3)], [(None, None, None)], pool=False, halo=0)
    blocked.plain(spikes).sum().backward()
    elsewhere = torch.ones_like(x, dtype=torch.bool)
    elsewhere.view(3, 5, 2, 4, 4)[:, 0, 1, 2, 3] = False
    assert torch.equal(blocks.grad[elsewhere], given.grad[elsewhere])
    lost = torch.isnan(given.grad)
    assert bool((torch.isnan(blocks.grad) == lost).all())
