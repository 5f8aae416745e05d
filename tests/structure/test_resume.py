"""The same seed makes the same wiring, also after an interruption, and draws from nobody else's generator."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from torch import nn

from regraft.errors import StructureError
from regraft.structure import PRESETS, Rule, Scope, Topology, preset

DENSITY, STEPS, EVERY, LAST = 0.3, 16, 3, 12
RULES = [
    *PRESETS.values(),
    Rule("taylor-accumulated", drop="taylor", grow="accumulated"),
    Rule("signed-momentum-row", drop="signed", grow="momentum", scope=Scope("row")),
    preset("granet", scope=Scope("network")),
]
IDS = [f"{r.name}-{r.scope.name}" for r in RULES]


def start(net, rule, seed=5, **settings):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=seed, **settings)
    topology.attach(optimizer)
    return model, optimizer, topology


def hashes(topology):
    return [e.mask_hash for e in topology.events]


@pytest.mark.parametrize("stop", [6, 8])
@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(rule, stop, net, train):
    """Stopped just after an event, and between two, so that whatever is accumulated matters; read as safe files are."""
    model, optimizer, topology = start(net, rule)
    train(model, optimizer, 1, STEPS)

    first, stopped, earlier = start(net, rule)
    train(first, stopped, 1, stop)
    file = io.BytesIO()
    saved = {"model": first.state_dict(), "optimizer": stopped.state_dict(), "topology": earlier.state_dict()}
    torch.save(saved, file)
    train(first, stopped, stop + 1, STEPS)  # what was saved is a copy
    file.seek(0)
    state = torch.load(file, weights_only=True)

    resumed, other, later = start(net, rule)
    train(resumed, other, 101, 104)  # into a run that has gone elsewhere meanwhile
    later.load_state_dict(state["topology"])
    resumed.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    assert later.step == stop
    train(resumed, other, stop + 1, STEPS)
    assert hashes(later) == hashes(topology)
    assert str(later) == str(topology)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters(), strict=True))
    for a, b in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)


def test_what_is_saved_is_a_copy(net, train):
    model, optimizer, topology = start(net, Rule("r", drop="taylor", grow="momentum"))
    train(model, optimizer, 1, 4)
    state = topology.state_dict()
    kept = {key: {n: t.clone() for n, t in state[key].items()} for key in ("masks", "young", "ever", "average")}
    train(model, optimizer, 5, STEPS)
    for key, tensors in kept.items():
        assert tensors
        assert all(torch.equal(t, state[key][n]) for n, t in tensors.items())
    assert len(state["events"]) == 1


def test_loading_changes_masks_in_place_and_cleans_the_weights(net, train):
    model, optimizer, topology = start(net, "esl")
    train(model, optimizer, 1, 4)
    _, _, fresh = start(net, "esl")
    addresses = {name: m.data_ptr() for name, m in fresh.masks.items()}
    fresh.load_state_dict(topology.state_dict())
    assert {name: m.data_ptr() for name, m in fresh.masks.items()} == addresses
    assert fresh.mask_hash == topology.mask_hash
    for name, mask in fresh.masks.items():
        assert not bool(fresh.model.get_parameter(name).detach()[~mask].any())


@pytest.mark.parametrize(
    ("rule", "settings", "says"),
    [
        ("set", {}, "rule 'esl'"),
        ("esl", {"seed": 6}, "seed"),
        ("esl", {"until": 9}, "until"),
        ("esl", {"dense": ["0"]}, "dense"),
        ("esl", {"allocation": "erk"}, "allocation"),
        ("esl", {"scope": Scope("row")}, "scope"),
        (preset("esl", zeta=0.2), {}, "schedule"),
        (preset("esl", grace=False), {}, "grace"),
        (preset("esl", reselect=True), {}, "reselect"),
        (preset("esl", grow="gradient"), {}, "grow"),
        ("esl", {"exclude": ["0"]}, "another model"),
    ],
)
def test_a_wiring_of_other_settings_is_refused_and_nothing_changes(rule, settings, says, net):
    _, _, saved = start(net, "esl")
    other = Topology(net(), DENSITY, rule, **({"steps": STEPS, "every": EVERY, "seed": 5} | settings))
    before = other.mask_hash
    with pytest.raises(StructureError, match=says):
        other.load_state_dict(saved.state_dict())
    assert other.mask_hash == before


def test_a_wiring_of_another_shape_is_refused(net):
    _, _, saved = start(net, "esl")
    other = net()
    other[6] = nn.Linear(20, 4)
    with pytest.raises(StructureError, match="of another model"):
        Topology(other, DENSITY, "esl", steps=STEPS, every=EVERY, seed=5).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_the_same_seed_makes_the_same_run_and_another_seed_another(rule, net, train):
    runs = []
    for seed in (1, 1, 2):
        model, optimizer, topology = start(net, rule, seed=seed)
        born = topology.mask_hash
        torch.manual_seed(seed + len(runs))  # the global generator has no say
        train(model, optimizer, 1, STEPS)
        runs.append(([born, *hashes(topology)], [p.detach().clone() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert rule.schedule.start_density == 1.0 or runs[0][0][0] != runs[2][0][0]
    assert rule.name == "gmp" or all(a != b for a, b in zip(runs[0][0], runs[2][0], strict=True))


# --- item 17 ---------------------------------------------------------------------------------------------------------

PLAIN = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("rule", ["static", "rigl", "set", "snfs"])
@pytest.mark.parametrize("birth", ["rescale", "keep"])
def test_density_one_without_events_is_plain_training_to_the_bit(rule, name, birth, net, train):
    plain, sparse = net(), net()
    optimizers = [PLAIN[name](m.parameters()) for m in (plain, sparse)]
    topology = Topology(sparse, 1.0, rule, birth=birth, steps=8, every=1, until=1.0)
    topology.attach(optimizers[1])
    for model, optimizer in zip((plain, sparse), optimizers, strict=True):
        train(model, optimizer, 1, 8)
    assert not topology.events
    assert topology.step == 8
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), sparse.parameters(), strict=True))
    for a, b in zip(optimizers[0].state.values(), optimizers[1].state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_nothing_is_drawn_from_anybodys_generator(rule, net, train):
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    model, optimizer, topology = start(net, rule)
    train(model, optimizer, 1, STEPS)
    assert topology.connections < topology.possible
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


def _trained(seed: int) -> tuple[nn.Module, Topology]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, 0.1, "set", steps=40, every=2)
    topology.attach(optimizer)
    for _ in range(29):
        model(torch.randn(8, 12)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, topology


@pytest.mark.parametrize("attach", [False, True])
def test_weights_may_be_loaded_before_or_after_the_topology_is_made(attach):
    model, topology = _trained(0)
    x = torch.randn(5, 12)

    other = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    other.load_state_dict(model.state_dict())
    again = Topology(other, 0.1, "set", steps=40, every=2)
    if attach:
        again.attach(torch.optim.SGD(other.parameters(), lr=0.1))
    again.load_state_dict(topology.state_dict())
    assert torch.equal(other(x), model(x))

    late = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    then = Topology(late, 0.1, "set", steps=40, every=2, seed=0)
    late.load_state_dict(model.state_dict())
    then.load_state_dict(topology.state_dict())
    assert torch.equal(late(x), model(x))
