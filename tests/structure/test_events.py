"""What one event does: the same as a sorted list in plain Python, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regraft.structure import PRESETS, Drop, Rule, Topology, preset

DENSITY, STEPS, EVERY, LAST = 0.3, 16, 3, 12


# --- item 5: a reference that knows lists and `sorted`, and nothing of this package ----------------------------------


def flat(tensors):
    return {name: t.detach().double().flatten().tolist() for name, t in tensors.items()}


def drop_key(drop, weight, saliency, existing):
    """connection -> what is sorted, smallest first, for one layer."""
    if drop == "taylor":
        return {i: saliency[i] for i in existing}
    if drop == "magnitude":
        return {i: abs(weight[i]) for i in existing}
    positive = sorted((weight[i], i) for i in existing if weight[i] > 0)
    negative = sorted((-weight[i], i) for i in existing if weight[i] < 0)
    key = dict.fromkeys(existing, -1.0)
    for ranked in (positive, negative):
        key |= {i: (rank + 0.5) / len(ranked) for rank, (_, i) in enumerate(ranked)}
    return key


def same_choice(chosen, candidates, key):
    """Whether `chosen` are the smallest of `candidates` by `key`; equal keys may stand for each other."""
    chosen = set(chosen)
    if not chosen <= set(candidates):
        return False
    return sorted(key[i] for i in chosen) == sorted(key[i] for i in candidates)[: len(chosen)]


def check_layer(rule, zeta, planned, old, new, young, gone, weight, saliency, gradient):
    """One layer's exchange: `old`, `new`, `young`, `gone` are sets of indices."""
    everything = set(range(len(weight)))
    room = everything - old - gone
    droppable = old - young if rule.grace else old
    n_drop = max(len(old) - planned, min(math.floor(zeta * len(old) + 0.5), len(room), len(droppable)))
    n_grow = planned - (len(old) - n_drop)
    key = drop_key(rule.drops.name, weight, saliency, old)
    if rule.reselect:
        ranked = sorted(old, key=lambda i: key[i])
        candidates = room | set(ranked[:n_drop])
        grow_key = {i: -abs(gradient[i]) for i in candidates}
        expected = set(ranked[n_drop:]) | set(sorted(candidates, key=lambda i: grow_key[i])[:n_grow])
        assert new == expected
        return n_drop, n_grow
    dropped, grown = old - new, new - old
    assert (len(dropped), len(grown)) == (n_drop, n_grow)
    if len(droppable) >= n_drop:
        assert same_choice(dropped, droppable, key)
    else:
        assert droppable <= dropped
        assert same_choice(dropped - droppable, old & young, key)
    assert grown <= room
    if rule.grows.name != "random":
        assert same_choice(grown, room, {i: -abs(gradient[i]) for i in room})
    return n_drop, n_grow


REFERENCED = [
    PRESETS["set"],
    PRESETS["rigl"],
    PRESETS["gse"],
    PRESETS["snfs"],
    PRESETS["itop"],
    PRESETS["ndsnn"],
    PRESETS["gmp"],
    PRESETS["esl"],
    Rule("taylor-accumulated", drop="taylor", grow="accumulated"),
    preset("rigl", drop="signed", replaces_step=False),
]


@pytest.mark.parametrize("rule", REFERENCED, ids=[r.name for r in REFERENCED])
def test_each_event_picks_what_a_sorted_list_picks(rule, net, batch):
    model = net()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=1)
    topology.attach(optimizer)
    names = list(topology.masks)
    at_event = {}
    topology.before_event(lambda m, step: at_event.update(flat({n: parameters[n] for n in names})))
    young = {n: set() for n in names}
    summed, average, saliency = ({n: [0.0] * parameters[n].numel() for n in names} for _ in range(3))
    moved = 0
    for step in range(1, LAST + 1):
        old = {n: set(m.flatten().nonzero().flatten().tolist()) for n, m in topology.masks.items()}
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        dense = flat({n: parameters[n].grad for n in names})
        sample = topology.candidates
        weights = flat({n: parameters[n] for n in names})
        for n in names:
            summed[n] = [a + g for a, g in zip(summed[n], dense[n], strict=True)]
            average[n] = [0.9 * a + 0.1 * g for a, g in zip(average[n], dense[n], strict=True)]
            saliency[n] = [s + abs(w * g) for s, w, g in zip(saliency[n], weights[n], dense[n], strict=True)]
        optimizer.step()
        if step % EVERY:
            continue
        assert (at_event == weights) is rule.replaces_step  # the event looks at the new weights
        zeta = rule.schedule.zeta
        if rule.schedule.decay == "cosine":
            zeta *= (1 + math.cos(math.pi * step / LAST)) / 2
        grow = {"accumulated": summed, "momentum": average}.get(rule.grows.name, dense)
        for n in names:
            new = set(topology.masks[n].flatten().nonzero().flatten().tolist())
            if rule.grows.name in ("accumulated", "momentum") or rule.drops.name == "taylor":
                # sums in another order: the reference keeps fp32's precision, no more
                grow[n] = torch.tensor(grow[n]).tolist()
            outside = set()
            if sample is not None:
                candidates = set(sample[n].flatten().nonzero().flatten().tolist())
                everything = set(range(parameters[n].numel()))
                outside = everything - candidates
                assert candidates <= everything - old[n]
                assert len(candidates) == min(len(old[n]), len(everything - old[n]))
            check_layer(rule, zeta, len(new), old[n], new, young[n], outside, at_event[n], saliency[n], grow[n])
            young[n] = new - old[n]
            moved += len(young[n])
            summed[n] = [0.0] * len(summed[n])
            saliency[n] = [0.0] * len(saliency[n])
    assert moved > 0 or rule.name == "gmp"


def test_granet_prunes_the_whole_network_then_exchanges_within_layers(net, batch):
    rule = PRESETS["granet"]
    model = net()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=1)
    topology.attach(optimizer)
    names = list(topology.masks)
    at_event = {}
    topology.before_event(lambda m, step: at_event.update(flat({n: parameters[n] for n in names})))
    possible = sum(m.numel() for m in topology.masks.values())
    young = set()
    for step in range(1, LAST + 1):
        old = {(n, i) for n, m in topology.masks.items() for i in m.flatten().nonzero().flatten().tolist()}
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        dense = flat({n: parameters[n].grad for n in names})
        optimizer.step()
        if step % EVERY:
            continue
        new = {(n, i) for n, m in topology.masks.items() for i in m.flatten().nonzero().flatten().tolist()}
        total = math.floor((DENSITY + (0.5 - DENSITY) * (1 - step / LAST) ** 3) * possible + 0.5)
        assert len(new) == total
        # Equal weights may stand for each other: those that are still there were not the ones pruned.
        by_weight = sorted(old, key=lambda c: (c in young, abs(at_event[c[0]][c[1]]), c in new))
        pruned = set(by_weight[: len(old) - total])
        zeta = 0.25 * (1 + math.cos(math.pi * step / LAST))
        for n in names:
            own, left, then, fresh = ({i for m, i in s if m == n} for s in (pruned, old - pruned, new, young))
            check_layer(rule, zeta, len(left), left, then, fresh & left, own, at_event[n], at_event[n], dense[n])
        young = new - old


# --- item 4: growing changes no output -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["itop", "rigl", "esl"])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_growing_alone_leaves_the_logits_as_they_are_to_the_bit(rule, make, net, batch):
    """Half of the existing weights are 0, and so is the learning rate: what is dropped is 0, only growth could show."""
    model = net()
    optimizer = make(model.parameters(), lr=0.0)
    topology = Topology(model, DENSITY, preset(rule, zeta=0.3, decay="constant"), steps=4, every=2, until=2)
    topology.attach(optimizer)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in topology.masks:
                existing = topology.masks[name].nonzero()
                p[tuple(existing[::2].T)] = 0
    outputs = []
    for step in (1, 2):
        x, y = batch(step)
        outputs.append(model(batch(9)[0]).detach())
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    outputs.append(model(batch(9)[0]).detach())
    assert sum(topology.events[0].grown.values()) > 20
    assert torch.equal(outputs[1], outputs[2])
    assert torch.equal(outputs[0], outputs[2])


# --- the `rigl` preset as published ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    ],
)
def test_rigls_event_replaces_the_step_and_what_is_chosen_again_keeps_value_and_state(make, net, batch, train):
    model = net()
    parameters = dict(model.named_parameters())
    optimizer = make(model.parameters())
    topology = Topology(model, DENSITY, preset("rigl", zeta=0.9), steps=STEPS, every=EVERY)
    topology.attach(optimizer)
    train(model, optimizer, 1, EVERY - 1)
    masks = {n: m.clone() for n, m in topology.masks.items()}
    weights = {n: p.detach().clone() for n, p in parameters.items()}
    states = {n: {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()} for n, p in parameters.items()}
    train(model, optimizer, EVERY, EVERY)
    assert topology.events[0].step == topology.step == EVERY
    again = 0
    for name, p in parameters.items():
        kept = masks[name] & topology.masks[name] if name in masks else torch.ones_like(p, dtype=torch.bool)
        assert torch.equal(p.detach()[kept], weights[name][kept])
        for key, value in states[name].items():
            now = torch.as_tensor(optimizer.state[p][key])
            assert torch.equal(now[kept], value[kept]) if value.shape == p.shape else torch.equal(now, value)
        if name in masks:
            n_drop = math.floor(0.45 * (1 + math.cos(math.pi * EVERY / LAST)) * int(masks[name].sum()) + 0.5)
            smallest = weights[name].abs()[masks[name]].sort().values[n_drop - 1]
            again += int((kept & (weights[name].abs() <= smallest)).sum())
    assert again > 0
    train(model, optimizer, EVERY + 1, EVERY + 1)  # and the next step is an ordinary one
    assert not torch.equal(parameters["6.bias"].detach(), weights["6.bias"])


def test_other_presets_step_and_then_rewire(net, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, "itop", steps=STEPS, every=EVERY)
    topology.attach(optimizer)
    train(model, optimizer, 1, EVERY - 1)
    bias = model[6].bias.detach().clone()
    train(model, optimizer, EVERY, EVERY)
    assert len(topology.events) == 1
    assert not torch.equal(bias, model[6].bias.detach())


# --- Adam's first step after a revival -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize(
    ("second_moment", "low", "high"), [("as it is begun", 0.05, 1.2), ("from zero", 3.0, 3.3)], ids=["begun", "zero"]
)
def test_the_first_update_of_a_grown_weight_is_bounded(make, second_moment, low, high):
    """Gradients of one size everywhere, a step count that is old: from 0 the first update is (1-b1)/sqrt(1-b2) lr."""
    lr = 1e-3
    layer = nn.Linear(20, 20, bias=False)
    options = {"amsgrad": True} if second_moment == "as it is begun" else {}
    optimizer = make([layer.weight], lr=lr, weight_decay=0.0, **options)
    topology = Topology(layer, 0.5, preset("itop", zeta=0.4), steps=10, every=2)
    topology.attach(optimizer)
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2):
        sign = torch.rand(20, 20, generator=generator).round() * 2 - 1
        layer.weight.grad = sign * (0.9 + 0.2 * torch.rand(20, 20, generator=generator))
        before = topology.masks["weight"].clone()
        if step == 1:
            optimizer.step()
            state = optimizer.state[layer.weight]
            state["step"].fill_(10_000)
            for key in ("exp_avg_sq", "max_exp_avg_sq"):
                if key in state:
                    state[key].copy_(topology.masks["weight"].float())
        else:
            optimizer.step()
    grown = topology.masks["weight"] & ~before
    assert int(grown.sum()) > 10
    assert not bool(state["exp_avg"][grown].any())
    if second_moment == "from zero":
        state["exp_avg_sq"][grown] = 0
    else:
        survived = topology.masks["weight"] & before
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            torch.testing.assert_close(state[key][grown], state[key][survived].mean().expand(int(grown.sum())))
    layer.weight.grad = torch.ones(20, 20)
    optimizer.step()
    first = layer.weight.detach()[grown].abs() / lr
    assert low <= float(first.min())
    assert float(first.max()) <= high


# --- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["rigl", "esl"])
def test_before_event_sees_the_old_wiring_and_its_step(rule, net, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY)
    topology.attach(optimizer)
    calls, hashes = [], [topology.mask_hash]

    def call(given, step):
        assert given is model
        calls.append((step, topology.mask_hash, len(topology.events)))

    topology.before_event(call)
    train(model, optimizer, 1, STEPS)
    hashes += [e.mask_hash for e in topology.events]
    assert calls == [(step, hashes[i], i) for i, step in enumerate((3, 6, 9, 12))]
    assert len(set(hashes)) >= 4


def test_exploration_counts_what_ever_existed(net, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, "esl", steps=STEPS, every=EVERY)
    topology.attach(optimizer)
    ever = {n: m.clone() for n, m in topology.masks.items()}
    for step in range(1, STEPS + 1):
        train(model, optimizer, step, step)
        ever = {n: ever[n] | m for n, m in topology.masks.items()}
    share = sum(int(e.sum()) for e in ever.values()) / topology.possible
    assert topology.events[-1].exploration == topology.exploration == share > DENSITY


def test_network_scope_moves_connections_between_layers(net, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, Rule("r", grow="gradient"), scope="network", steps=STEPS, every=EVERY)
    topology.attach(optimizer)
    before = {n: int(m.sum()) for n, m in topology.masks.items()}
    train(model, optimizer, 1, STEPS)
    after = {n: int(m.sum()) for n, m in topology.masks.items()}
    assert before != after
    assert sum(before.values()) == sum(after.values())


def test_an_event_that_empties_a_layer_says_so_once_and_what_to_do(net, train):
    model = net()
    with torch.no_grad():
        model[6].weight.mul_(1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    Topology(model, 0.1, "granet", steps=STEPS, every=EVERY).attach(optimizer)
    with pytest.warns(UserWarning, match=r"left 6.weight without any connection.*dense=") as caught:
        train(model, optimizer, 1, STEPS)
    assert len(caught) == 1


def test_a_weight_that_is_not_a_number_stops_the_event(net, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = Rule("broken", drop=Drop("broken", lambda view: view.weight * math.nan))
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY)
    topology.attach(optimizer)
    with pytest.raises(Exception, match="not a number at a rewiring event"):
        train(model, optimizer, 1, STEPS)


def test_a_sample_is_drawn_anew_for_each_event_and_is_the_same_again(net, batch):
    rule = preset("gse", zeta=1e-9)  # exchanges nothing: what differs is the draw
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    topology = Topology(model, 0.1, rule, steps=STEPS, every=EVERY, seed=1)
    topology.attach(optimizer)
    drawn = []
    for step in range(1, 2 * EVERY + 1):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if step % EVERY == 0:
            first = {name: t.clone() for name, t in topology.candidates.items()}
            again = Topology(model, 0.1, rule, steps=STEPS, every=EVERY, seed=1)
            again.load_state_dict(topology.state_dict())
            drawn.append((first, {name: t.clone() for name, t in again.candidates.items()}))
        optimizer.step()
    (first, same), (later, _) = drawn
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], later[name]) for name in first)
    assert Topology(net(), 0.1, "rigl", steps=STEPS, every=EVERY).candidates is None
