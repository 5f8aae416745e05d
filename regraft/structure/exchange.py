"""One exchange within one block: what goes, what comes. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.structure.rules import Rule, View, select
from regraft.structure.schedule import changes


def exchange(
    rule: Rule, view: View, young: Tensor, gone: Tensor, planned: Tensor, zeta: float, generator: torch.Generator
) -> Tensor:
    """The connections after an event, `[G, M]` bool, with exactly `planned` `[G]` (int64, CPU) in each group.

    Args:
        view: what scores look at; `view.exists` is the wiring before.
        young: grown at the last event; spared where `rule.grace` and the budget allow.
        gone: not candidates for growth: dropped earlier in this event, or not in its sample.
        zeta: share to exchange.
    """
    exists = view.exists
    young = young if rule.grace else torch.zeros_like(young)
    candidates = ~exists & ~gone
    k = exists.sum(dim=1).cpu()
    droppable = k - young.sum(dim=1).cpu()
    n_drop, n_grow = changes(k, planned, zeta, candidates.sum(dim=1).cpu(), droppable)
    score = rule.drops.score(view)
    old_first = torch.minimum(n_drop, droppable)
    drop = select(score, exists & ~young, old_first, generator)
    drop |= select(score, young, n_drop - old_first, generator)
    candidates = candidates | drop if rule.reselect else candidates
    return (exists & ~drop) | select(-rule.grows.score(view), candidates, n_grow, generator)


def sampled(exists: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Absent connections, in each group `share` times as many as exist there (or all there are), `[G, M]` bool."""
    counts = (share * exists.sum(dim=1).cpu()).round().long().minimum((~exists).sum(dim=1).cpu())
    return select(torch.zeros(exists.shape, device=exists.device), ~exists, counts, generator)
