"""An ordinary network made spiking: each ReLU call a neuron, everything else as it was."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import ShapeError, UsageError
from regraft.neurons import IF, LIF, PLIF, repeat, set_steps, unfold
from regraft.neurons.spiking import spiking


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small only wait for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Reused(nn.Module):
    """One in-place ReLU module for three call sites."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.fc1 = nn.Linear(8 * 9, 12)
        self.fc2 = nn.Linear(12, 5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv1(x)))
        x = self.relu(self.conv2(x))
        x = x.view(x.size(0), -1)
        return self.fc2(self.relu(self.fc1(x)))


class Functional(nn.Module):
    """Every functional spelling, dropout and normalisation by function."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(i, 6, 3, padding=1) for i in (3, 6, 6, 6, 6, 6, 6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        x = torch.relu(self.layers[1](x))
        x = torch.relu_(self.layers[2](x))
        x = self.layers[3](x).relu()
        x = F.relu(self.layers[4](x), inplace=True)
        x = self.layers[5](x).relu_()
        x = F.batch_norm(self.layers[6](x), self.mean, self.var, training=self.training)
        x = x.clamp(min=0)
        x = F.dropout(x, 0.5, training=self.training)
        return self.fc(x.mean([2, 3]))


class InPlace(nn.Module):
    """After an in-place ReLU its input is used again: that use sees the ReLU's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x))
        out = self.bn2(self.conv2(self.act(h)))
        out = out + h
        torch.relu_(out)
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class InPlaceByHand(InPlace):
    def __init__(self) -> None:
        super().__init__()
        self.act = LIF(steps=4, static=True)
        self.act2 = LIF(steps=4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(h)) + h)
        return unfold(self.fc(out.mean([2, 3])), 4)


class Block(nn.Module):
    """A residual block as published code writes it: `out += identity`, one in-place ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Block(6, 6, 1), Block(6, 8, 2))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.maxpool(self.stem(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, 4, 1)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(4, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True)
        s = self.conv_expand(self.act1(self.conv_reduce(s)))
        return x * self.gate(s)


class InvertedResidual(nn.Module):
    """Depthwise-separable, with squeeze-and-excitation and a linear bottleneck; residual where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * 3
        self.expand = nn.Sequential(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU(inplace=True)
        self.se = SqueezeExcite(hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.se(self.act(self.bn(self.depthwise(self.expand(x))))))
        return x + out if self.use_res_connect else out


class MobileNet(nn.Module):
    """Its first residual adds a static stem to a folded branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.features = nn.Sequential(InvertedResidual(6, 6, 1), InvertedResidual(6, 8, 2))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(self.stem(x)).mean([2, 3]))


class Mixer(nn.Module):
    """Static meets folded in every way: concatenation, `+=` on the static side, a size taken before any neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 3, 3, padding=1)
        self.fc = nn.Linear(3 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, w = x.shape
        skip = x * 0.5
        h = torch.cat([x, F.relu(self.conv(x))], dim=1)
        before = skip
        skip += F.relu(self.conv2(h))
        return self.fc((before + skip).view(b, c * w * 8)) + x.mean([1, 2, 3]).unsqueeze(1)


class MixerByHand(Mixer):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = LIF(steps=4, static=True), LIF(steps=4)

    def forward(self, x: Tensor) -> Tensor:
        seen = repeat(x, 4)
        h = torch.cat([seen, self.first(self.conv(x))], dim=1)
        skip = seen * 0.5 + self.second(self.conv2(h))
        return unfold(self.fc((skip + skip).flatten(1)) + seen.mean([1, 2, 3]).unsqueeze(1), 4)


class Shuffle(nn.Module):
    """Channel shuffle with sizes of the folded tensor, chunks, and a weight made non-negative by a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.branch = nn.Conv2d(3, 3, 3, padding=1)
        self.mix = nn.Parameter(torch.tensor([0.7, -0.3, 0.4]))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, F.relu(self.branch(right) * F.relu(self.mix).view(1, 3, 1, 1))), 1)
        b, c, h, w = x.size()
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.fc(x.mean([2, 3]) * torch.tensor(0.5))


NETS = [Reused, Functional, InPlace, ResNet, MobileNet, Mixer, Shuffle]
SITES = {Reused: 3, Functional: 7, InPlace: 2, ResNet: 5, MobileNet: 6, Mixer: 2, Shuffle: 2}


def build(net: type[nn.Module]) -> nn.Module:
    """With weights large enough that every layer fires."""
    torch.manual_seed(0)
    model = net()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=2 / parameter[0].numel() ** 0.5)
    return model


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2


def neurons(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LIF)}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_with_relus_as_neurons_it_computes_what_the_original_computes(net, training) -> None:
    """Bit for bit, gradients too: the surgery on the graph changes nothing but the neurons."""
    model = build(net).train(training)
    same = spiking(model, steps=1, neuron=nn.ReLU)
    results = []
    for network in (model, same):
        torch.manual_seed(2)
        out = network(images())
        out = out if network is model else out[0]
        out.square().sum().backward()
        results.append((out, [p.grad for p in network.parameters()], list(network.state_dict().values())))
    assert torch.equal(results[0][0], results[1][0])
    for ours, theirs in zip(results[0][1] + results[0][2], results[1][1] + results[1][2], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("net", NETS)
def test_names_and_order_of_parameters_and_buffers_stay(net) -> None:
    model = build(net)
    before = copy.deepcopy(model.state_dict())
    result = spiking(model)
    assert list(result.state_dict()) == list(before)
    assert [n for n, _ in result.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(result.state_dict().values(), before.values(), strict=True))
    assert not set(result.parameters()) & set(model.parameters())
    assert not neurons(model)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("steps", [1, 4])
def test_each_site_has_its_neuron_and_every_parameter_its_gradient(net, steps) -> None:
    result = spiking(build(net), steps=steps)
    seen: dict[str, int] = {}
    for name, neuron in neurons(result).items():
        neuron.register_forward_hook(lambda *_, name=name: seen.update({name: seen.get(name, 0) + 1}))
    out = result(images())
    assert out.shape == (steps, 3, 5)
    assert len(seen) == SITES[net]
    assert set(seen.values()) == {1}
    out.square().sum().backward()
    assert [n for n, p in result.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("net", "by_hand"), [(InPlace, InPlaceByHand), (Mixer, MixerByHand)])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_network_written_by_hand(net, by_hand, training) -> None:
    result = spiking(build(net), steps=4).train(training)
    hand = build(by_hand).train(training)
    hand.load_state_dict(result.state_dict())
    assert torch.equal(result(images()), hand(images()))


def test_images_are_computed_once_up_to_the_first_neuron() -> None:
    result = spiking(build(ResNet), steps=4)
    seen = []
    for layer in (result.stem[0], result.layer1[0].conv1):
        layer.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[0]))
    result(images(3))
    assert seen == [3, 12]
    assert [name for name, neuron in neurons(result).items() if neuron.static] == ["stem.2"]


@pytest.mark.parametrize("net", NETS)
def test_images_equal_the_same_image_as_events_at_each_step(net) -> None:
    model = build(net).eval()
    still, events = spiking(model, steps=4), spiking(model, steps=4, static=False)
    x = images()
    torch.testing.assert_close(still(x), events(x.expand(4, *x.shape).clone()))
    assert not any(neuron.static for neuron in neurons(events).values())


def test_events_of_another_number_of_steps_are_refused() -> None:
    result = spiking(build(ResNet), steps=4, static=False)
    with pytest.raises(ShapeError, match="4 time steps"):
        result(torch.rand(2, 6, 3, 8, 8))
    set_steps(result, 2)
    assert result(torch.rand(2, 6, 3, 8, 8)).shape == (2, 6, 5)


def test_steps_can_be_changed_later() -> None:
    model = build(Mixer)
    result = spiking(model, steps=2)
    set_steps(result, 5)
    assert torch.equal(result(images()), spiking(model, steps=5)(images()))


def test_neurons_have_readable_names() -> None:
    assert list(neurons(spiking(build(Reused)))) == ["relu", "relu_2", "relu_3"]
    assert list(neurons(spiking(build(ResNet)))) == [
        "stem.2", "layer1.0.relu", "layer1.0.relu_2", "layer1.1.relu", "layer1.1.relu_2"
    ]  # fmt: skip
    assert list(neurons(spiking(build(InPlace)))) == ["act", "neuron"]


def test_neuron_is_a_factory() -> None:
    result = spiking(build(Reused), neuron=lambda: IF(threshold=0.5, reset="soft"))
    assert all(type(n) is IF and n.threshold == 0.5 for n in neurons(result).values())
    learnt = spiking(build(Reused), neuron=PLIF)
    assert {n for n, _ in learnt.named_parameters() if n.endswith(".w")} == {"relu.w", "relu_2.w", "relu_3.w"}


def test_squeeze_and_excite_gates_spikes_by_an_analogue_value() -> None:
    result = spiking(build(MobileNet), steps=4)
    gates, products = [], []
    se = result.features[0].se
    assert isinstance(se.act1, LIF)
    se.gate.register_forward_hook(lambda _, args, out: gates.append(out))
    result.features[0].project[0].register_forward_hook(lambda _, args, out: products.append(args[0]))
    result(images())
    assert gates[0].shape == (12, 18, 1, 1)
    fired = products[0] != 0
    assert fired.any()
    assert torch.equal(products[0][fired], gates[0].expand_as(products[0])[fired])


def test_relu6_is_a_neuron_too() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU6(inplace=True), nn.Linear(4, 2))
    assert len(neurons(spiking(model))) == 1
    same = spiking(model, steps=1, neuron=nn.ReLU6)
    x = torch.randn(5, 3) * 20
    assert torch.equal(same(x)[0], model(x))


@pytest.mark.parametrize("net", [Functional, Mixer, Shuffle])
def test_copies_saves_and_modes(net, tmp_path) -> None:
    result = spiking(build(net), steps=3, neuron=PLIF)
    twin = copy.deepcopy(result)
    assert list(twin.state_dict()) == list(result.state_dict())
    twin.fc.weight.data.zero_()
    assert result.fc.weight.abs().sum() > 0
    torch.save(result.state_dict(), tmp_path / "weights.pt")
    twin.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(result.eval()(images()), twin.eval()(images()))
    whole = io.BytesIO()
    torch.save(result, whole)
    whole.seek(0)
    loaded = torch.load(whole, weights_only=False)
    assert list(loaded.state_dict()) == list(result.state_dict())
    assert torch.equal(result(images()), loaded(images()))


def test_functional_dropout_follows_the_mode() -> None:
    result = spiking(build(Functional).eval(), steps=2)
    assert not result.training
    assert torch.equal(result(images()), result(images()))
    result.train()
    torch.manual_seed(0)
    assert not torch.equal(result(images()), result(images()))


def test_a_tuple_of_outputs_is_unfolded_part_by_part() -> None:
    class Two(Reused):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
            h = self.relu(self.conv1(x))
            return {"features": h, "input": x}

    out = spiking(Two(), steps=4)(images())
    assert out["features"].shape == (4, 3, 6, 8, 8)
    assert torch.equal(out["input"], images().expand(4, 3, 3, 8, 8))


def test_other_arguments_of_forward_keep_their_defaults() -> None:
    class Optional(Reused):
        def forward(self, x: Tensor, features: bool = False) -> Tensor:
            return x if features else super().forward(x)

    assert spiking(Optional())(images()).shape == (4, 3, 5)


class Calls(nn.Module):
    """A ReLU net with one more operation in the middle."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 2)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.operation(torch.relu(self.fc1(x))))


@pytest.mark.parametrize(
    "layer",
    [nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Mish, nn.PReLU, nn.Softplus, nn.Hardtanh, nn.Tanh],
)
def test_other_activation_layers_are_refused_by_name(layer) -> None:
    with pytest.raises(UsageError, match=rf"'operation' \({layer.__name__}\).*set_submodule"):
        spiking(Calls(layer()))


@pytest.mark.parametrize(
    "operation",
    [
        F.gelu, F.silu, F.hardswish, F.leaky_relu, F.elu, F.elu_, F.mish, F.softplus, torch.selu, torch.tanh,
        lambda x: x.tanh(),
        lambda x: F.prelu(x, torch.tensor([0.1])),
    ],
)  # fmt: skip
def test_other_functional_activations_are_refused(operation) -> None:
    with pytest.raises(UsageError, match=r"call of \w+\(\) in Calls.*F\.relu"):
        spiking(Calls(operation))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x * torch.sigmoid(x), "SiLU"),
        (lambda x: x.mul_(F.hardsigmoid(x)), "hard swish"),
        (lambda x: F.relu6(x + 3) / 6, "Hardsigmoid"),
        (nn.TransformerEncoderLayer(6, 2), "TransformerEncoderLayer"),
        (lambda x: x if x.sum() > 0 else -x, "torch.fx.wrap"),
        (lambda x: x.view(5, 6), "batch size of 5"),
        (lambda x: x.reshape((5, 6)), "batch size of 5"),
        (lambda x: (y := x * 2, z := y.view(-1, 6), y.relu_(), z)[-1], "works in place"),
    ],
)
def test_what_no_neuron_can_stand_for_is_refused(operation, message) -> None:
    with pytest.raises(UsageError, match=message):
        spiking(Calls(operation))


def test_a_gate_and_a_clamp_of_both_sides_stay_analogue() -> None:
    result = spiking(Calls(lambda x: x * F.hardsigmoid(x + 1) + x.clamp(0, 1)), steps=2)
    assert len(neurons(result)) == 1


@pytest.mark.parametrize(
    ("way", "place"),
    [
        (lambda x, training: x * 2 if training else x, "mul"),
        (lambda x, training: (torch.add if training else torch.mul)(x, 2), "add"),
        (lambda x, training: x * (2 if training else 3), "mul"),
    ],
)
def test_another_way_in_training_is_refused(way, place) -> None:
    class Branch(Reused):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(way(x, self.training))

    with pytest.raises(UsageError, match=rf"call of {place}\(\) in Branch: .*another way in training"):
        spiking(Branch())


def test_models_that_cannot_be_meant_are_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(x + y)

    with pytest.raises(UsageError, match="no ReLU"):
        spiking(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()))
    with pytest.raises(UsageError, match="takes x, y"):
        spiking(Pair())
    with pytest.raises(UsageError, match="already"):
        spiking(nn.Sequential(nn.Linear(2, 2), LIF(), nn.ReLU()))
    with pytest.raises(UsageError, match="steps=1"):
        spiking(build(Reused), neuron=nn.ReLU, steps=4)
    with pytest.raises(ShapeError, match="steps is 0"):
        spiking(build(Reused), steps=0)


def test_events_without_neurons_of_time_are_seen_frame_by_frame() -> None:
    model = build(ResNet).eval()
    frames = torch.stack([images(), images() * 0.5])
    out = spiking(model, steps=2, neuron=nn.ReLU, static=False)(frames)
    torch.testing.assert_close(out, torch.stack([model(frame) for frame in frames]))
