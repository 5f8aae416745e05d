"""One table of all rules and all optimisers, run through the same checks after every single step."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.errors import OptimizerError, StructureError, UsageError
from regraft.structure import DROP, GROW, PRESETS, Drop, Grow, Rule, Schedule, Scope, Topology, View, preset
from regraft.structure.allocation import counts, shrink

STEPS, EVERY, LAST = 16, 3, 12  # events at 3, 6, 9, 12: `until` is 0.75 of the steps
DENSITY = 0.3
SHAPES = {"0.weight": (4, 2, 3, 3), "4.weight": (20, 16), "6.weight": (3, 20)}
POSSIBLE = sum(math.prod(s) for s in SHAPES.values())


def coldest(view: View) -> Tensor:
    """A drop rule as a user writes one: the smallest weights for their group."""
    mean = (view.weight.abs() * view.exists).sum(dim=1, keepdim=True) / view.exists.sum(dim=1, keepdim=True)
    return view.weight.abs() / mean


MINE = Rule("mine", drop=Drop("coldest", coldest), grow=Grow("shy", lambda view: -view.gradient.abs(), "gradient"))
SCOPES = (Scope("layer"), Scope("row"), Scope("row", strict=True), Scope("network"))
RULES = [*PRESETS.values(), MINE, preset("gmp", zeta=0.2), preset("granet", scope=Scope("network"))]
RULES += [
    Rule(f"{drop}-{grow}-{scope.name}{'-strict' * scope.strict}", drop=drop, grow=grow, scope=scope)
    for drop, grow, scope in itertools.product(DROP, GROW, SCOPES)
]
RULES += [
    preset("ndsnn", name=f"ndsnn-{scope.name}{'-strict' * scope.strict}", scope=scope, grow="random")
    for scope in SCOPES
]

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum-decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
}
ROWS = list(zip(RULES, itertools.cycle(OPTIMIZERS)))
ROWS += [(PRESETS[rule], name) for name in OPTIMIZERS for rule in ("rigl", "set", "granet")]


def groups(scope: Scope, masks: dict[str, Tensor]) -> list[Tensor]:
    """The masks cut into the sets within which the scope holds counts."""
    if scope.name == "network":
        return [torch.cat([m.flatten() for m in masks.values()])]
    if scope.name == "row":
        return [row.flatten() for m in masks.values() for row in m]
    return [m.flatten() for m in masks.values()]


def planned_density(rule: Rule, step: int) -> float:
    start = rule.schedule.start_density
    return DENSITY if start is None else DENSITY + (start - DENSITY) * (1 - step / LAST) ** 3


def check_event(rule: Rule, step: int, before: dict, after: dict, young: dict) -> None:
    """What holds across one event, by the masks alone (items 1 and 3)."""
    start = rule.schedule.start_density
    two_stages = rule.prune is not None
    now, then = ({n: int(m.sum()) for n, m in masks.items()} for masks in (before, after))
    if not rule.scope.strict:
        assert sum(then.values()) == math.floor(planned_density(rule, step) * POSSIBLE + 0.5)
    if start is not None and rule.scope.name == "layer" and not two_stages:
        aim = counts(SHAPES, planned_density(rule, step), rule.allocation)
        assert then == shrink(now, aim, math.floor(planned_density(rule, step) * POSSIBLE + 0.5))
    if start is not None and rule.scope.name != "network":
        assert all(then[name] <= now[name] for name in now)
    zeta = rule.schedule.zeta
    if rule.schedule.decay == "cosine":
        zeta = zeta / 2 * (1 + math.cos(math.pi * step / LAST))
    cut = [groups(rule.scope, masks) for masks in (before, after, young)]
    for was, became, new in zip(*cut, strict=True):
        k, k_planned = int(was.sum()), int(became.sum())
        if start is None:
            assert k_planned == k
        old = k - int((new & was).sum()) if rule.grace else k
        expected = max(k - k_planned, min(math.floor(zeta * k + 0.5), len(was) - k, old))
        dropped = int((was & ~became).sum())
        if rule.reselect:
            assert dropped <= expected
        elif not two_stages:
            assert dropped == expected
        if rule.grace and start is None:
            assert not bool((was & ~became & new).any())
    if rule.scope.name == "row":
        for mask in after.values():
            rows = mask.reshape(len(mask), -1).sum(dim=1)
            assert int(rows.max() - rows.min()) <= (0 if rule.scope.strict else 1)


@pytest.mark.parametrize(("rule", "optimizer_name"), ROWS, ids=[f"{r.name}-{o}" for r, o in ROWS])
def test_every_rule_with_every_optimizer_holds_after_every_step(rule, optimizer_name, net, batch):
    model = net()
    parameters = dict(model.named_parameters())
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=3)
    topology.attach(optimizer)
    seen: list[int] = []

    def what_the_optimizer_sees(*_):
        for name, mask in topology.masks.items():
            grad = parameters[name].grad
            assert grad is None or not bool(grad[~mask].any())
        seen.append(topology.step)

    optimizer.register_step_pre_hook(what_the_optimizer_sees)
    addresses = {name: m.data_ptr() for name, m in topology.masks.items()}
    assert {n: tuple(m.shape) for n, m in topology.masks.items()} == SHAPES
    young = {name: torch.zeros_like(m) for name, m in topology.masks.items()}
    exact = not rule.scope.strict
    assert not exact or topology.connections == math.floor(planned_density(rule, 0) * POSSIBLE + 0.5)
    shaped = 0
    for step in range(1, STEPS + 1):
        before = {name: m.clone() for name, m in topology.masks.items()}
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        after = {name: m.clone() for name, m in topology.masks.items()}
        for name, mask in after.items():
            assert not bool(parameters[name].detach()[~mask].any())
            for value in optimizer.state[parameters[name]].values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    shaped += 1
                    assert not bool(value[~mask].any())
        grown = {name: after[name] & ~before[name] for name in after}
        if rule.schedule.evolves and step % EVERY == 0 and step <= LAST:
            event = topology.events[-1]
            assert event.step == step
            check_event(rule, step, before, after, young)
            assert event.grown == {name: int(g.sum()) for name, g in grown.items()}
            assert event.dropped == {name: int((before[name] & ~after[name]).sum()) for name in after}
            assert event.connections == {name: int(m.sum()) for name, m in after.items()}
            assert event.density == topology.connections / POSSIBLE
            for name in grown:
                assert not bool(parameters[name].detach()[grown[name]].any())
            young = grown
        else:
            assert all(torch.equal(before[name], after[name]) for name in after)
    assert len(seen) == topology.step == STEPS
    assert [e.step for e in topology.events] == ([3, 6, 9, 12] if rule.schedule.evolves else [])
    assert (shaped > 0) is (optimizer_name != "sgd")
    assert sum(sum(e.dropped.values()) for e in topology.events) > 0 or not rule.schedule.evolves
    assert not exact or topology.connections == math.floor(DENSITY * POSSIBLE + 0.5)
    assert {name: m.data_ptr() for name, m in topology.masks.items()} == addresses
    ever = sum(int(m.sum()) for m in topology.masks.values()) / POSSIBLE
    assert ever <= topology.exploration <= 1


@pytest.mark.parametrize("name", ["momentum-decay", "nesterov", "sgd-fused", "adam", "adamw", "adamw-fused"])
def test_weight_decay_revives_nothing_and_reaches_only_what_exists(name, net, batch, train):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    topology = Topology(model, DENSITY, "static")
    topology.attach(optimizer)
    with torch.no_grad():  # as if something had written there
        model[4].weight[~topology.masks["4.weight"]] = 5.0
    train(model, optimizer, 1, 1)
    assert not bool(model[4].weight.detach()[~topology.masks["4.weight"]].any())
    for value in optimizer.state[model[4].weight].values():
        if value.numel() > 1:
            assert not bool(value[~topology.masks["4.weight"]].any())


def test_until_is_a_share_or_a_step_and_nothing_happens_after_it(net, train):
    for until, last in ((0.5, 8), (1.0, 16), (7, 6)):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        topology = Topology(model, DENSITY, "set", steps=16, every=2, until=until)
        topology.attach(optimizer)
        train(model, optimizer, 1, 20)
        assert [e.step for e in topology.events] == list(range(2, last + 1, 2))
        assert topology.last_event == last


def test_by_default_the_last_quarter_of_training_has_a_fixed_structure(net, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, "set", steps=20, every=1)
    topology.attach(optimizer)
    train(model, optimizer, 1, 15)
    fixed = topology.mask_hash
    train(model, optimizer, 16, 20)
    assert topology.events[-1].step == 15
    assert topology.mask_hash == fixed


def test_masks_cannot_be_replaced_and_the_table_prints_what_was_counted(net):
    topology = Topology(net(), DENSITY, "static")
    with pytest.raises(TypeError):
        topology.masks["0.weight"] = torch.ones(1)  # pyright: ignore[reportIndexIssue]
    printed = str(topology)
    for name, mask in topology.masks.items():
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert line.split()[1:3] == [str(int(mask.sum())), str(mask.numel())]
    assert f"{topology.connections} " in printed.splitlines()[-2]


# --- attaching -------------------------------------------------------------------------------------------------------


def test_attaching_cleans_what_is_there_and_detaching_lets_go(net, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1, 2)  # dense momentum
    topology = Topology(model, DENSITY, "set", steps=20, every=2)
    topology.attach(optimizer)
    absent = ~topology.masks["4.weight"]
    assert not bool(optimizer.state[model[4].weight]["momentum_buffer"][absent].any())
    with pytest.raises(UsageError, match="attached already"):
        topology.attach(optimizer)
    topology.detach()
    train(model, optimizer, 3, 6)
    assert topology.step == 0
    assert not topology.events
    assert bool(model[4].weight.detach()[absent].any())
    topology.attach(optimizer)
    assert not bool(model[4].weight.detach()[absent].any())
    train(model, optimizer, 7, 8)
    assert topology.step == 2


def test_wrappers_that_hold_the_optimizer_are_unwrapped(net, train):
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, "set", steps=20, every=2)
    topology.attach(Wrapper(Wrapper(inner)))
    train(model, inner, 1, 4)
    assert len(topology.events) == 2


class Odd(torch.optim.SGD):
    """Keeps one value a row, as factored optimisers do."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["rows"] = torch.ones(len(p))
        return super().step(closure)


class OurLBFGS(torch.optim.LBFGS):
    pass


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (torch.optim.LBFGS, "LBFGS keeps state"),
        (OurLBFGS, "LBFGS keeps state"),
        (torch.optim.Adafactor, "Adafactor keeps state"),
    ],
)
def test_optimizers_whose_state_cannot_follow_are_refused_by_name(make, says, net):
    model = net()
    with pytest.raises(OptimizerError, match=says):
        Topology(model, DENSITY, "static").attach(make(model.parameters()))


def test_state_of_another_shape_is_refused_where_it_is_found(net, train):
    model = net()
    optimizer = Odd(model.parameters(), lr=0.1)
    Topology(model, DENSITY, "static").attach(optimizer)
    with pytest.raises(OptimizerError, match=r"Odd keeps 'rows' of shape \(4,\) for '0.weight'"):
        train(model, optimizer, 1, 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda model: torch.optim.SGD(model[4].parameters(), lr=0.1), "does not hold 0.weight, 6.weight"),
        (lambda model: "sgd", "takes a torch optimizer, not str"),
    ],
)
def test_an_optimizer_that_does_not_step_the_weights_is_refused(given, says, net):
    model = net()
    with pytest.raises(UsageError, match=says):
        Topology(model, DENSITY, "static").attach(given(model))


# --- at the door -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"density": math.nan}, "density is nan"),
        ({"density": -0.1}, "density is -0.1"),
        ({"density": 0}, "density is 0"),
        ({"density": 1.2}, "at most 1"),
        ({"density": "0.1"}, "density is 0.1"),
        ({"density": 0.001}, "one connection for each"),
        ({"steps": None}, "steps is None"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": math.nan}, "steps is nan"),
        ({"every": 0}, "every is 0"),
        ({"every": -1}, "every is -1"),
        ({"every": math.nan}, "every is nan"),
        ({"every": 2.5}, "every is 2.5"),
        ({"every": 90}, "no event fits"),
        ({"until": math.nan}, "until is nan"),
        ({"until": -0.5}, "until is -0.5"),
        ({"until": 1.5}, "until is 1.5"),
        ({"until": 101}, "until is step 101 of 100"),
        ({"until": "0.5"}, "until is step '0.5'"),
        ({"birth": "rescaled"}, "give 'rescale' or 'keep'"),
        ({"rule": "rgil"}, "did you mean 'rigl'"),
        ({"scope": "rows"}, "did you mean 'row'"),
        ({"allocation": "erkk"}, "did you mean 'erk'"),
        ({"rule": "granet", "density": 0.8}, "starts at density 0.5, below the final 0.8"),
        ({"rule": "granet", "scope": "row"}, "uneven"),
        ({"rule": "ndsnn", "dense": ["4"], "density": 0.2}, "less than the dense layers"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_anything_changes(settings, says, net):
    model = net()
    untouched = [p.detach().clone() for p in model.parameters()]
    if settings.get("rule") == "ndsnn":
        settings = settings | {"rule": preset("ndsnn", start_density=0.9)}
    with pytest.raises(UsageError, match=says):
        Topology(model, **{"density": 0.3, "rule": "set", "steps": 100, "every": 10, **settings})
    assert all(torch.equal(a, b) for a, b in zip(untouched, model.parameters(), strict=True))


class FullyShardedDataParallel(nn.Module):
    """By this name torch shards parameters."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_sharded_models_are_refused_by_name_also_inside_others(net):
    for model in (FullyShardedDataParallel(net()), nn.Sequential(FullyShardedDataParallel(net()))):
        with pytest.raises(StructureError, match="use DistributedDataParallel"):
            Topology(model, DENSITY, "static")


def test_a_wiring_that_cannot_change_needs_no_number_of_steps(net):
    assert Topology(net(), 1.0, "rigl").last_event == 0
    assert Topology(net(), 0.5, Rule("still", schedule=Schedule(zeta=0))).last_event == 0


def test_numbers_of_numpy_are_numbers():
    topology = Topology(nn.Linear(20, 10), np.float32(0.1), "set", steps=np.int64(100), every=np.int32(10))
    assert (topology.connections, topology.every, topology.last_event) == (20, 10, 70)


def test_what_is_no_rule_is_refused():
    with pytest.raises(UsageError, match="rule is None"):
        Topology(nn.Linear(4, 4), 0.5, None)  # pyright: ignore[reportArgumentType]


def test_repr_is_one_line():
    assert repr(Topology(nn.Linear(20, 10), 0.1, "static")) == (
        "Topology('static', 20 of 200 connections, 0 events in 0 steps)"
    )


def test_equal_rows_say_which_density_they_took():
    with pytest.warns(UserWarning, match=r"nearest density to 0\.12 is 0\.1"):
        Topology(nn.Linear(20, 10), 0.12, Rule("r", scope=Scope("row", strict=True), schedule=Schedule(zeta=0)))
