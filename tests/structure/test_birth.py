"""The first mask: exact counts, a floor of one a unit, and weights that keep the preactivations as strong as before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regraft.structure import Scope, Topology
from regraft.structure.birth import first_mask
from regraft.structure.rules import select


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 8), st.integers(1, 12), st.data())
@settings(max_examples=100, deadline=None)
def test_counts_are_exact_and_every_unit_gets_one_where_the_budget_allows(rows, columns, data):
    count = data.draw(st.integers(0, rows * columns))
    score = (
        torch.zeros(rows, columns) if data.draw(st.booleans()) else torch.randn(rows, columns, generator=generator())
    )
    mask = first_mask(score, count, Scope(), generator(1))
    assert int(mask.sum()) == count
    if count >= rows:
        assert bool(mask.any(dim=1).all())
    rows_mask = first_mask(score, count, Scope("row"), generator(1))
    assert int(rows_mask.sum()) == count
    assert int(rows_mask.sum(dim=1).max() - rows_mask.sum(dim=1).min()) <= 1


@pytest.mark.parametrize(("count", "each"), [(10, 3), (9, 2), (1, 1), (28, 7), (27, 7)])
def test_strict_rows_are_equal_and_the_total_is_the_nearest(count, each):
    mask = first_mask(torch.zeros(4, 7), count, Scope("row", strict=True), generator())
    assert mask.sum(dim=1).tolist() == [each] * 4


def test_a_strict_topology_reports_the_density_it_has(net):
    topology = Topology(net(), 0.3, "static", scope=Scope("row", strict=True))
    for mask in topology.masks.values():
        assert len(set(mask.reshape(len(mask), -1).sum(dim=1).tolist())) == 1
    assert topology.connections != round(0.3 * topology.possible)
    assert f"{topology.connections / topology.possible:.4f}" in str(topology).splitlines()[-2]


def test_random_masks_are_uniform_within_and_over_rows():
    hits = torch.zeros(4, 10)
    shared = generator(7)
    for _ in range(3000):
        hits += first_mask(torch.zeros(4, 10), 12, Scope(), shared)
    expected = 3000 * 12 / 40
    assert float((hits - expected).abs().max()) < 5 * (expected * 0.7) ** 0.5


def test_keep_takes_the_largest_and_leaves_them_untouched(net):
    model = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    topology = Topology(model, 0.3, "static", birth="keep")
    for name, p in model.named_parameters():
        if name not in topology.masks:
            assert torch.equal(p.detach(), before[name])
            continue
        mask, size = topology.masks[name], before[name].abs()
        assert torch.equal(p.detach(), before[name] * mask)
        largest = {int(row.flatten().argmax()) + i * row.numel() for i, row in enumerate(size)}
        k = int(mask.sum())
        others = [i for i in size.flatten().argsort(descending=True).tolist() if i not in largest]
        assert set(mask.flatten().nonzero().flatten().tolist()) == largest | set(others[: k - len(largest)])


def test_global_allocation_with_keep_is_the_largest_weights_of_the_network(net):
    model = net()
    ranked = torch.cat([p.detach().abs().flatten() for n, p in model.named_parameters() if p.ndim > 1])
    topology = Topology(model, 0.5, "static", birth="keep", allocation="global")
    threshold = ranked.sort(descending=True).values[topology.connections - 1]
    assert topology.connections == ranked.numel() // 2
    for name, mask in topology.masks.items():
        kept = model.get_parameter(name).detach()[mask].abs()
        own = dict(net().named_parameters())[name].detach().abs()
        assert int(mask.sum()) == int((own >= threshold).sum())
        floor = own.reshape(len(own), -1).max(dim=1).values
        assert bool(((kept >= threshold) | torch.isin(kept, floor)).all())


@pytest.mark.parametrize("scope", ["layer", "row"])
def test_rescaling_keeps_the_variance_of_preactivations(scope):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        dense, sparse = nn.Linear(400, 300, bias=False), nn.Linear(400, 300, bias=False)
        x = torch.randn(400, 400)
    with torch.no_grad():
        sparse.weight.copy_(dense.weight)
    topology = Topology(sparse, 0.05, "static", scope=scope)
    reference, found = dense(x).detach(), sparse(x).detach()
    assert float(found.var() / reference.var()) == pytest.approx(1, abs=0.03)
    by_unit = (found.var(dim=0) / reference.var(dim=0)).log()
    assert float(by_unit.abs().mean()) < 0.25  # also unit by unit, whatever its number of connections
    share = topology.masks["weight"].float().mean(dim=1, keepdim=True)
    expected = dense.weight.detach() / share.sqrt() * topology.masks["weight"]
    torch.testing.assert_close(sparse.weight.detach(), expected)


def test_dense_layers_and_a_dense_start_are_not_rescaled(net):
    for settings_ in ({"rule": "gmp", "steps": 100, "every": 10}, {"rule": "static", "dense": ["0"]}):
        model = net()
        Topology(model, 0.4, **settings_)
        assert torch.equal(model[0].weight, net()[0].weight)


def test_a_rule_that_starts_denser_is_born_at_its_start(net):
    topology = Topology(net(), 0.1, "granet", steps=100, every=10)
    assert topology.connections == topology.possible // 2


def test_the_floor_is_of_birth_only_and_selection_knows_none():
    score = torch.arange(6.0).reshape(2, 3)
    mask = select(score.reshape(1, -1), torch.ones(1, 6, dtype=torch.bool), torch.tensor([3]), generator())
    assert mask.reshape(2, 3).sum(dim=1).tolist() == [3, 0]
    assert first_mask(score, 3, Scope(), generator()).sum(dim=1).tolist() == [2, 1]
