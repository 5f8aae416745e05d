"""Growth looks at dense gradients: before clipping, after unscaling, over all micro-batches, not of skipped steps."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from regraft.structure import GROW, PRESETS, Rule, Schedule, Topology, preset

DENSITY, STEPS, EVERY, LAST = 0.3, 12, 3, 9
PARTS = [("magnitude", grow) for grow in GROW] + [("taylor", "accumulated"), ("taylor", "random")]
KINDS = [Rule(f"{drop}-{grow}", drop=drop, grow=grow) for drop, grow in PARTS] + [PRESETS["rigl"]]
IDS = [r.name for r in KINDS]


def run(net, batch, rule, *, lr=0.1, dtype=torch.float32, make=torch.optim.SGD, handle=None, **options):
    """The masks after each event of a plain loop, and its model. `handle` is called after each backward."""
    model = net(dtype)
    optimizer = make(model.parameters(), lr=lr, **options)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=2)
    topology.attach(optimizer)
    for number in range(1, LAST + 1):
        optimizer.zero_grad()
        x, y = batch(number, dtype)
        nn.functional.cross_entropy(model(x), y).backward()
        if handle is not None:
            handle(topology, optimizer, model, number)
        optimizer.step()
    assert len(topology.events) == LAST // EVERY
    return [e.mask_hash for e in topology.events], model


# --- before clipping, as often as one likes --------------------------------------------------------------------------


def masked(topology, optimizer, model, step):
    topology.mask_gradients()
    gc.collect(0)


def masked_twice(topology, optimizer, model, step):
    topology.mask_gradients()
    topology.mask_gradients()


def clipped_by_norm(topology, optimizer, model, step):
    topology.mask_gradients()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-6 / step)


def clipped_by_value(topology, optimizer, model, step):
    topology.mask_gradients()
    nn.utils.clip_grad_value_(model.parameters(), 1e-12)


def replaced(topology, optimizer, model, step):
    topology.mask_gradients()
    for p in model.parameters():
        p.grad = p.grad / (step + p.grad.norm())


@pytest.mark.parametrize("rule", KINDS, ids=IDS)
@pytest.mark.parametrize("handle", [masked, masked_twice, clipped_by_norm, clipped_by_value, replaced])
def test_masks_are_the_same_whatever_becomes_of_the_gradient_after_masking(handle, rule, net, batch):
    """With a learning rate of 0 nothing but the recorded gradients could make a difference."""
    assert run(net, batch, rule, lr=0.0, handle=handle)[0] == run(net, batch, rule, lr=0.0)[0]


@pytest.mark.parametrize("rule", KINDS, ids=IDS)
def test_clipping_at_a_huge_norm_changes_no_bit_of_training(rule, net, batch):
    def clipped(topology, optimizer, model, step):
        topology.mask_gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 1e9)

    (masks, model), (plain, other) = run(net, batch, rule, handle=clipped), run(net, batch, rule)
    assert masks == plain
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_norm_that_is_clipped_counts_existing_connections_only(net, batch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, "rigl", steps=STEPS, every=1)
    topology.attach(optimizer)
    x, y = batch(1)
    nn.functional.cross_entropy(model(x), y).backward()
    squares = 0.0
    for name, p in model.named_parameters():
        squares += float((p.grad[topology.masks[name]] if name in topology.masks else p.grad).square().sum())
    topology.mask_gradients()
    assert float(nn.utils.get_total_norm([p.grad for p in model.parameters()])) == pytest.approx(squares**0.5, rel=1e-5)


def test_masking_again_within_a_step_changes_nothing(net, batch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, Rule("r", grow="momentum"), steps=STEPS, every=EVERY)
    topology.attach(optimizer)
    x, y = batch(1)
    nn.functional.cross_entropy(model(x), y).backward()
    topology.mask_gradients()
    once = [p.grad.clone() for p in model.parameters()]
    topology.mask_gradients()
    assert all(torch.equal(a, p.grad) for a, p in zip(once, model.parameters(), strict=True))


# --- micro-batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", KINDS, ids=IDS)
@pytest.mark.parametrize("eager", [False, True], ids=["masked-once", "masked-each"])
def test_growth_sees_all_micro_batches_of_a_step(rule, eager, net, batch):
    """Four micro-batches of two make the masks of one batch of eight, in float64."""
    whole, reference = run(net, batch, rule, dtype=torch.float64)
    model = net(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=2)
    topology.attach(optimizer)
    for step in range(1, LAST + 1):
        optimizer.zero_grad()
        x, y = batch(step, torch.float64)
        for part in range(0, 8, 2):
            loss = nn.functional.cross_entropy(model(x[part : part + 2]), y[part : part + 2], reduction="sum") / 8
            loss.backward()
            if eager:
                topology.mask_gradients()
        optimizer.step()
    assert [e.mask_hash for e in topology.events] == whole
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# --- loss scaling ----------------------------------------------------------------------------------------------------

SCALED = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "sgd-fused": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "adamw": (torch.optim.AdamW, {}),
    "adamw-fused": (torch.optim.AdamW, {"fused": True}),
}


def scaled_run(net, batch, rule, optimizer_name, *, overflow=(), keep=False, unscale=False, where=None):
    """A loop under `GradScaler`, in which the first tries of the steps in `overflow` have an infinite gradient."""
    make, options = SCALED[optimizer_name]
    model = net()
    optimizer = make(model.parameters(), lr=0.01, **options)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=2)
    topology.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
    for step in range(1, LAST + 1):
        for infinite in [True, False] if step in overflow else [False]:
            optimizer.zero_grad(set_to_none=not keep)
            x, y = batch(step if not infinite else 100 + step)
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            if infinite:
                model.get_parameter(where).grad.view(-1)[0] = torch.inf
            if unscale:
                scaler.unscale_(optimizer)
                topology.mask_gradients()
            scaler.step(optimizer)
            scaler.update()
            assert topology.step == (step - 1 if infinite else step)
    return [e.mask_hash for e in topology.events], model


RULES = [Rule(grow, grow=grow) for grow in ("gradient", "accumulated", "momentum")]
RULES += [Rule("taylor", drop="taylor", grow="gradient"), PRESETS["rigl"]]


@pytest.mark.parametrize("rule", RULES, ids=[r.name for r in RULES])
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("unscale", [False, True], ids=["by-the-hook", "by-hand"])
def test_scaling_the_loss_by_a_power_of_two_changes_no_mask(rule, name, unscale, net, batch):
    make, options = SCALED[name]
    plain, reference = run(net, batch, rule, lr=0.01, make=make, **options)
    scaled, model = scaled_run(net, batch, rule, name, unscale=unscale)
    assert scaled == plain
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rule", RULES, ids=[r.name for r in RULES])
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("unscale", [False, True], ids=["by-the-hook", "by-hand"])
def test_a_step_with_an_infinite_gradient_leaves_no_trace(rule, name, unscale, net, batch):
    """Skipped by the scaler, whatever `zero_grad` leaves behind and wherever the infinite value was."""
    clean, reference = scaled_run(net, batch, rule, name, unscale=unscale)
    for keep, where in ((False, "6.weight"), (True, "6.weight"), (True, "6.bias")):
        masks, model = scaled_run(net, batch, rule, name, keep=keep, unscale=unscale, overflow=(2, 3, 5), where=where)
        assert masks == clean
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b)


# --- what a sparse backward must deliver -----------------------------------------------------------------------------

DUE = [
    (Rule("random"), []),
    (Rule("taylor-random", drop="taylor"), []),
    (Rule("gradient", grow="gradient"), [3, 6, 9]),
    (Rule("accumulated", grow="accumulated"), list(range(1, 10))),
    (Rule("momentum", grow="momentum"), list(range(1, 10))),
    (PRESETS["rigl"], [3, 6, 9]),
    (PRESETS["granet"], [3, 6, 9]),
    (PRESETS["gmp"], []),
    (PRESETS["static"], []),
    (Rule("still", grow="gradient", schedule=Schedule(zeta=0)), []),
]


@pytest.mark.parametrize(("rule", "due"), DUE, ids=[r.name for r, _ in DUE])
def test_a_dense_gradient_is_due_at_the_right_steps_and_needed_at_no_other(rule, due, net, batch):
    """A run whose backward leaves out absent connections wherever it may makes the very same masks."""

    def masks(sparse):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=2)
        topology.attach(optimizer)
        was_due = []
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            x, y = batch(step)
            if topology.dense_gradient_due:
                was_due.append(step)
            nn.functional.cross_entropy(model(x), y).backward()
            if sparse and not topology.dense_gradient_due:
                for name, mask in topology.masks.items():
                    model.get_parameter(name).grad[~mask] = 0
            optimizer.step()
        assert was_due == due
        return [e.mask_hash for e in topology.events]

    assert masks(sparse=True) == masks(sparse=False)


@pytest.mark.parametrize(("rule", "due"), [row for row in DUE if row[1]], ids=[r.name for r, due in DUE if due])
def test_without_a_gradient_that_was_due_the_masks_differ(rule, due, net, batch):
    def withheld(missing):
        def handle(topology, optimizer, model, step):
            if step == missing:
                for name, mask in topology.masks.items():
                    model.get_parameter(name).grad[~mask] = 0

        return handle

    rule = preset(rule, decay="constant")
    plain = run(net, batch, rule)[0]
    for step in due:
        assert run(net, batch, rule, handle=withheld(step))[0] != plain, step


# --- closures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", KINDS, ids=IDS)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_trains_as_the_plain_loop_does(rule, by_name, net, batch):
    plain, reference = run(net, batch, rule, momentum=0.9)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY, seed=2)
    topology.attach(optimizer)
    for step in range(1, LAST + 1):

        def closure(step=step):
            optimizer.zero_grad()
            x, y = batch(step)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert float(loss.detach()) > 0
    assert [e.mask_hash for e in topology.events] == plain
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


@pytest.mark.parametrize("rule", KINDS, ids=IDS)
def test_a_step_without_any_gradient_is_a_step(rule, net):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = Topology(model, DENSITY, rule, steps=STEPS, every=EVERY)
    topology.attach(optimizer)
    for _ in range(LAST):
        optimizer.step()
    assert [e.step for e in topology.events] == [3, 6, 9]
    assert topology.connections == int(DENSITY * topology.possible + 0.5)
