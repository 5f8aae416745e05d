"""Which tensors have connections, on models that nobody wrote for this package, and that these stay what they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regraft.errors import StructureError, UsageError
from regraft.structure import PRESETS, Rule, Topology, preset


class Foreign(nn.Module):
    """Attention, recurrence, normalisation, an embedding tied to its read-out, and hooks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.mix = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight
        self.calls = 0
        self.mix.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.calls += 1

    def forward(self, tokens):
        x = self.embed(tokens)
        x = self.norm(x + self.attention(x, x, x)[0])
        x = self.recurrent(x)[0]
        return self.head(self.mix(x.transpose(1, 2)).transpose(1, 2))


@pytest.fixture
def foreign():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Foreign()


def tokens(step):
    return torch.randint(0, 12, (4, 6), generator=torch.Generator().manual_seed(step))


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        out = model(tokens(step))
        nn.functional.cross_entropy(out.flatten(0, 1), tokens(step).roll(1, 1).flatten()).backward()
        optimizer.step()


def test_linear_and_conv_weights_are_taken_and_nothing_else(foreign):
    topology = Topology(foreign, 0.5, "static")
    assert list(topology.masks) == ["embed.weight", "attention.out_proj.weight", "mix.weight"]
    everything = nn.Sequential(
        nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv3d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2)
    )
    assert list(Topology(everything, 0.5, "static").masks) == ["0.weight", "1.weight", "2.weight", "3.weight"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"include": ["*.in_proj_weight"]}, {"embed", "attention.out_proj", "mix", "attention.in_proj_weight"}),
        (
            {"include": ["recurrent"], "exclude": ["head"]},
            {"attention.out_proj", "mix", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0"},
        ),
        ({"exclude": ["embed.weight", "mix"]}, {"attention.out_proj"}),
        ({"exclude": ["attention.*"]}, {"embed", "mix"}),
        ({"include": "recurrent.weight_hh_l0"}, {"embed", "attention.out_proj", "mix", "recurrent.weight_hh_l0"}),
    ],
)
def test_patterns_choose_by_parameter_or_layer_and_by_any_name_of_a_shared_tensor(settings, names, foreign):
    masks = Topology(foreign, 0.5, "static", **settings).masks
    assert {name.removesuffix(".weight") for name in masks} == names


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize("rule", [Rule("r", grow="gradient"), preset("granet", start_density=0.9), "gmp"])
def test_dense_layers_keep_all_their_connections_through_all_events(rule, scope, foreign):
    optimizer = torch.optim.Adam(foreign.parameters())
    topology = Topology(foreign, 0.75, rule, scope=scope, dense=["mix"], steps=12, every=2)
    topology.attach(optimizer)
    train(foreign, optimizer, 12)
    assert len(topology.events) == 4
    assert bool(topology.masks["mix.weight"].all())
    assert all(e.dropped["mix.weight"] == e.grown["mix.weight"] == 0 for e in topology.events)
    assert topology.connections == int(0.75 * topology.possible + 0.5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"include": ["nothing.*"]}, "include pattern 'nothing"),
        ({"include": ["norm.weight"]}, "include pattern 'norm.weight'"),
        ({"exclude": ["mixx"]}, "exclude pattern 'mixx'"),
        ({"dense": ["norm"]}, "dense pattern 'norm' fits none of embed.weight"),
        ({"dense": ["mix"], "exclude": ["mix"]}, "dense pattern 'mix'"),
    ],
)
def test_patterns_that_fit_nothing_are_refused(settings, says, foreign):
    with pytest.raises(UsageError, match=says):
        Topology(foreign, 0.5, "static", **settings)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.LayerNorm(4), "no Linear or Conv layer; name parameters with `include`"),
        (nn.ReLU(), "ReLU has no prunable weight"),
        (nn.Sequential(nn.LazyLinear(4)), "run one batch through the model first"),
    ],
)
def test_models_without_anything_to_prune_are_refused(model, says):
    with pytest.raises(StructureError, match=says):
        Topology(model, 0.5, "static")


def test_excluding_everything_is_refused():
    with pytest.raises(StructureError, match="check `exclude`"):
        Topology(nn.Sequential(nn.Linear(4, 4)), 0.5, "static", exclude=["*"])


# --- item 14 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["rigl", "set", "granet", "snfs"])
def test_a_foreign_model_grows_and_drops_and_stays_what_it_is(rule, foreign):
    def identity(module):
        return {
            "classes": [(name, type(m)) for name, m in module.named_modules()],
            "parameters": [(n, id(p), type(p), p.shape) for n, p in module.named_parameters(remove_duplicate=False)],
            "buffers": [name for name, _ in module.named_buffers()],
            "state": list(module.state_dict()),
            "hooks": [
                (n, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), "forward" in vars(m))
                for n, m in module.named_modules()
            ],
            "tensor hooks": [p._backward_hooks for p in module.parameters()],
        }

    before = identity(foreign)
    optimizer = torch.optim.AdamW(foreign.parameters(), lr=0.01)
    topology = Topology(foreign, 0.4, rule, include=["*in_proj_weight", "recurrent"], steps=16, every=3)
    topology.attach(optimizer)
    assert identity(foreign) == before
    train(foreign, optimizer, 16)
    assert identity(foreign) == before
    assert foreign.calls == 16
    assert len(topology.events) == 4
    assert sum(sum(e.grown.values()) + sum(e.dropped.values()) for e in topology.events) > 0
    assert topology.connections == int(0.4 * topology.possible + 0.5)
    for name, mask in topology.masks.items():
        assert not bool(foreign.get_parameter(name).detach()[~mask].any())
    assert foreign.head.weight is foreign.embed.weight
    topology.detach()
    assert identity(foreign) == before
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.peers
def test_a_model_of_another_library_grows_and_drops():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(layer.Linear(12, 16), neuron.LIFNode(), layer.Linear(16, 4))
    functional.set_step_mode(model, "m")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology = Topology(model, 0.3, "rigl", steps=8, every=2)
    topology.attach(optimizer)
    for step in range(8):
        optimizer.zero_grad()
        x = 2 * torch.rand(4, 5, 12, generator=torch.Generator().manual_seed(step))
        model(x).mean(0).square().sum().backward()
        optimizer.step()
        functional.reset_net(model)
    assert len(topology.events) == 3
    assert sum(sum(e.grown.values()) for e in topology.events) > 0
    assert type(model[0]) is layer.Linear


def test_a_shared_tensor_gets_one_mask(foreign):
    optimizer = torch.optim.SGD(foreign.parameters(), lr=0.1)
    topology = Topology(foreign, 0.3, "set", steps=8, every=2)
    topology.attach(optimizer)
    assert [name for name in topology.masks if topology.masks[name].shape == (12, 8)] == ["embed.weight"]
    assert topology.possible == 12 * 8 + 8 * 8 + 8 * 4 * 3
    train(foreign, optimizer, 8)
    assert not bool(foreign.head.weight.detach()[~topology.masks["embed.weight"]].any())


@pytest.mark.parametrize("rule", [PRESETS["rigl"], PRESETS["ndsnn"], Rule("r", grow="gradient")])
@pytest.mark.parametrize("scope", ["layer", "row", "network"])
def test_memory_format_has_no_say(rule, scope, net, batch):
    """channels_last weights: their indices are logical ones, so masks and weights are those of the ordinary layout."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = net(torch.float64).to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        topology = Topology(model, 0.3, rule, scope=scope, steps=12, every=3)
        topology.attach(optimizer)
        for step in range(12):
            x, y = batch(step, torch.float64)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(memory_format=layout)), y).backward()
            optimizer.step()
        assert model[0].weight.is_contiguous(memory_format=layout)
        assert not bool(model[0].weight.detach()[~topology.masks["0.weight"]].any())
        found.append(topology)
    assert [e.mask_hash for e in found[0].events] == [e.mask_hash for e in found[1].events]
    for name, mask in found[0].masks.items():
        assert torch.equal(mask, found[1].masks[name])


def test_a_parametrised_weight_is_left_out_aloud():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="the weight of '0' is computed from others"):
        topology = Topology(model, 0.5, "static")
    assert set(topology.masks) == {"1.weight"}


def test_a_frozen_weight_is_left_alone_aloud_unless_named():
    def model():
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        net[0].weight.requires_grad_(False)
        return net

    net = model()
    before = net[0].weight.clone()
    with pytest.warns(UserWarning, match=r"0\.weight is frozen"):
        topology = Topology(net, 0.5, "static")
    assert set(topology.masks) == {"1.weight"}
    assert torch.equal(net[0].weight, before)
    with pytest.warns(UserWarning, match="frozen"):
        assert set(Topology(model(), 0.5, "static", include=["0.weight"]).masks) == {"0.weight", "1.weight"}


def test_old_style_weight_norm_is_left_out_aloud():
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="'0' is computed from others"):
        topology = Topology(nn.Sequential(layer, nn.Linear(4, 4)), 0.5, "static")
    assert set(topology.masks) == {"1.weight"}
