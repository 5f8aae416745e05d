"""The networks: what goes in and comes out, how large they are, what is computed once, and that they fire."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from regraft.errors import ShapeError, UsageError
from regraft.models import MODELS, build, dvsgesture, resnet19, resnet_small, tiny_vgg, vgg16
from regraft.neurons import IF, LIF, PLIF, set_steps

SMALL = {
    "tiny_vgg": {},
    "vgg16": {"widths": ((4, 4), (6, 6), (8, 8), (8, 8), (8, 8))},
    "resnet19": {"stem": 4, "widths": (8, 12, 16), "hidden": 8},
    "resnet_small": {"widths": (4, 6, 8)},
    "dvsgesture": {"size": 32, "width": 6, "hidden": 12},
}
"""The same wiring with few channels."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return build(name, **(SMALL[name] | settings))


def samples(model: nn.Module, *batch: int) -> Tensor:
    return torch.randn(*batch, *model.input_shape, generator=torch.Generator().manual_seed(1))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_images_and_events_give_logits_of_each_step(name, steps) -> None:
    still = small(name, steps=steps, static=True, classes=7)
    assert still(samples(still, 3)).shape == (steps, 3, 7)
    events = small(name, steps=steps, static=False, classes=7)
    assert events(samples(events, steps, 3)).shape == (steps, 3, 7)


def test_sizes() -> None:
    """12.63 M as the literature quotes ResNet-19; VGG16: 14 710 464 in convolutions without bias, 2 * 4224 in BN."""
    assert parameters(resnet19(classes=10)) == pytest.approx(12.63e6, abs=5e3)
    assert parameters(resnet19(classes=100, stem=128)) == pytest.approx(12.72e6, abs=5e3)
    assert parameters(vgg16(classes=10)) == 14_710_464 + 2 * 4224 + 512 * 10 + 10
    assert parameters(dvsgesture()) == (18 + 4 * 9 * 128) * 128 + 5 * 256 + (2048 + 1) * 512 + 513 * 11
    assert parameters(dvsgesture(readout="vote")) - parameters(dvsgesture()) == 513 * 99


@pytest.mark.parametrize("name", MODELS)
def test_the_ann_twin_has_the_same_parameters_and_one_step(name) -> None:
    network, twin = small(name, static=True), small(name, static=True, neuron=nn.ReLU, steps=4)
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (network, twin)]
    assert shapes[0] == shapes[1]
    assert not any(isinstance(module, LIF) for module in twin.modules())
    x = samples(twin, 3)
    logits = twin.eval()(x)
    assert logits.shape[:2] == (1, 3)
    torch.testing.assert_close(logits[0], twin.classifier(twin.features(x)))


def test_the_ann_twin_sees_each_frame_by_itself() -> None:
    twin = small("dvsgesture", neuron=nn.ReLU, steps=2).eval()
    frames = samples(twin, 5, 3)
    torch.testing.assert_close(twin(frames), torch.stack([twin(frame[None])[0] for frame in frames]))


@pytest.mark.parametrize("name", MODELS)
def test_an_image_equals_itself_as_events_at_each_step(name) -> None:
    still = small(name, static=True).eval()
    events = small(name, static=False).eval()
    events.load_state_dict(still.state_dict())
    x = samples(still, 3)
    torch.testing.assert_close(still(x), events(x.expand(4, *x.shape)))


@pytest.mark.parametrize("name", MODELS)
def test_only_the_layers_before_the_first_neuron_are_computed_once(name) -> None:
    model = small(name, static=True, steps=4)
    rows = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda _, args, out: rows.append(args[0].shape[0]))
    model(samples(model, 3))
    assert rows[0] == 3
    assert set(rows[1:]) == {12}
    static = [m.static for m in model.modules() if isinstance(m, LIF)]
    assert static == [True] + [False] * (len(static) - 1)


@pytest.mark.parametrize(
    ("function", "settings", "batch"),
    [
        (tiny_vgg, {}, 16),
        (resnet_small, {"widths": (16, 32, 64)}, 4),
        (vgg16, {}, 4),
        (resnet19, {"size": 16}, 4),
        (dvsgesture, {"size": 32, "static": True}, 4),
        (dvsgesture, {"size": 32, "static": True, "readout": "vote"}, 4),
    ],
)
def test_no_layer_is_silent_at_birth(function, settings, batch) -> None:
    """With input of mean 0 and variance 1, in training mode; at full depth."""
    torch.manual_seed(0)
    model = function(**settings)
    rates = {}
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, args, out, name=name: rates.update({name: out.mean().item()}))
    with torch.no_grad():
        model(samples(model, batch))
    assert len(rates) >= 4
    assert {name: rate for name, rate in rates.items() if not 0.001 < rate < 0.6} == {}


def test_the_first_stage_of_resnet19_keeps_the_maps() -> None:
    model = small("resnet19")
    maps = []
    for stage in (model.features.stage1, model.features.stage2, model.features.stage3):
        stage.register_forward_hook(lambda _, args, out: maps.append(tuple(out.shape[-2:])))
    model(samples(model, 2))
    assert maps == [(32, 32), (16, 16), (8, 8)]
    assert [len(stage) for stage in (model.features.stage1, model.features.stage2, model.features.stage3)] == [3, 3, 2]


def test_a_block_adds_before_its_last_neuron() -> None:
    """So what leaves a block is spikes, never a sum of them."""
    model = small("resnet_small")
    block, seen = model.features.stage1[0], {}
    block.bn2.register_forward_hook(lambda _, args, out: seen.update(branch=out))
    block.neuron2.register_forward_hook(lambda _, args, out: seen.update(current=args[0], spikes=out))
    block.register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    model(samples(model, 2))
    assert torch.equal(seen["current"], seen["branch"] + seen["x"])
    assert torch.equal(seen["out"], seen["spikes"])
    assert set(seen["out"].unique().tolist()) == {0.0, 1.0}


def test_a_vote_is_the_mean_of_ten_spikes() -> None:
    model = small("dvsgesture", readout="vote", classes=11)
    spikes = []
    model.classifier[-2].register_forward_hook(lambda _, args, out: spikes.append(out))
    votes = model(samples(model, 4, 3))
    assert votes.shape == (4, 3, 11)
    assert torch.equal((votes * 10).round() / 10, votes)
    assert 0 < votes.max() <= 1
    torch.testing.assert_close(votes[1, 2, 5], spikes[0][1 * 3 + 2, 50:60].mean())


@pytest.mark.parametrize("neuron", [partial(LIF, decay=0.25), PLIF, partial(IF, reset="soft")])
def test_neuron_is_a_factory(neuron) -> None:
    model = small("resnet_small", neuron=neuron, steps=3)
    made = [m for m in model.modules() if isinstance(m, LIF)]
    assert len(made) == 7
    assert {m.extra_repr().replace(", static", "") for m in made} == {neuron(steps=3).extra_repr()}
    assert model(samples(model, 2)).shape == (3, 2, 10)


def test_set_steps_changes_the_whole_network() -> None:
    model = small("resnet_small")
    set_steps(model, 6)
    assert model(samples(model, 2)).shape == (6, 2, 10)


def test_weights_come_from_the_global_generator() -> None:
    first, again = small("tiny_vgg"), small("tiny_vgg")
    torch.manual_seed(1)
    other = tiny_vgg()
    assert torch.equal(first.features[0].weight, again.features[0].weight)
    assert not torch.equal(first.features[0].weight, other.features[0].weight)
    assert first.features[3].weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (2, 64), r"images \[N, C, H, W\]"),
        ({}, (4, 2, 1, 8, 8), r"static=False"),
        ({"static": False}, (2, 1, 8, 8), r"events \[T, N, C, H, W\]"),
        ({}, (2, 3, 8, 8), r"\[3, 8, 8\].*built for \[1, 8, 8\]"),
        ({}, (2, 1, 16, 16), "channels= and size="),
        ({"static": False}, (5, 2, 1, 8, 8), "have 5 time steps but the neurons 4.*set_steps"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_at_the_door(settings, shape, message) -> None:
    with pytest.raises(ShapeError, match=message):
        small("tiny_vgg", **settings)(torch.rand(shape))


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 32"):
        vgg16(size=28)
    with pytest.raises(UsageError, match="at least 32"):
        dvsgesture(size=16)
    with pytest.raises(UsageError, match="'membrane' or 'vote'"):
        dvsgesture(readout="rate")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="steps is 0"):
        tiny_vgg(steps=0)
