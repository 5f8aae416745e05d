"""What is dropped and what grows: small parts, pure functions of tensors.

A `Rule` is drop + grow + scope + schedule. A new one is a few lines:

>>> import torch
>>> from regraft.structure import Drop, Rule, GROW
>>> youngest = Rule("mine", drop=Drop("random", lambda view: torch.zeros_like(view.weight)), grow=GROW["gradient"])
>>> youngest.schedule.zeta
0.3

Parts see a scope as a matrix `[G, M]`: G groups within which counts are held, M connections (existing or not) in each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from regraft.errors import TrainingError, UsageError, nearest
from regraft.structure.schedule import Schedule

Need = Literal["nothing", "gradient", "accumulated", "momentum"]


@dataclass(frozen=True)
class View:
    """What a score may look at, each `[G, M]`.

    `weight` fp32; `exists` bool; `saliency` fp32, `abs(w * g)` summed since the last event; `gradient` fp32, the
    gradient that the grow part asked for, also at absent connections. The last two are zeros where no part needs them.
    """

    weight: Tensor
    exists: Tensor
    saliency: Tensor
    gradient: Tensor


Score = Callable[[View], Tensor]


@dataclass(frozen=True)
class Drop:
    """A way to choose what goes: the existing connections with the *smallest* score."""

    name: str
    score: Score
    needs_saliency: bool = False


@dataclass(frozen=True)
class Grow:
    """A way to choose what comes: the absent connections with the *largest* score.

    `needs`: `gradient`, the dense one of the event's step; `accumulated`, its sum since the last event; `momentum`,
    its running average over all steps.

    `sample`: an event chooses among so many times the existing connections of each layer (or row), drawn at random
    from the absent ones, and only their gradients are asked for: its cost goes with the connections. None: among all.
    """

    name: str
    score: Score
    needs: Need = "nothing"
    sample: float | None = None

    def __post_init__(self) -> None:
        if self.needs not in get_args(Need):
            raise UsageError(f"grow rule {self.name!r} needs {self.needs!r}: {nearest(self.needs, get_args(Need))}")
        if self.sample is not None and not (self.sample > 0 and self.needs in ("nothing", "gradient")):
            raise UsageError(
                f"grow rule {self.name!r} samples {self.sample} and needs {self.needs!r}: give a number above 0, and "
                f"let it need nothing of earlier steps, as each event has its own sample"
            )


@dataclass(frozen=True)
class Scope:
    """The set within which counts are held: `layer`, `row` (an output unit's incoming connections) or `network`.

    A row is an entry of the weight's first axis; in a transposed convolution that is an input unit.

    `strict` (rows only) makes all rows of a layer equal; the density is then the nearest one possible.
    """

    name: Literal["layer", "row", "network"] = "layer"
    strict: bool = False

    def __post_init__(self) -> None:
        if self.name not in SCOPES:
            raise UsageError(f"no scope is called {self.name!r}: {nearest(self.name, SCOPES)}")
        if self.strict and self.name != "row":
            raise UsageError(f"strict makes the rows of a layer equal: use it with scope 'row', not {self.name!r}")


SCOPES = ("layer", "row", "network")


def magnitude(view: View) -> Tensor:
    """Smallest `abs(w)` goes."""
    return view.weight.abs()


def signed(view: View) -> Tensor:
    """Smallest positive and largest negative weights go, each sign in proportion; zeros first (Mocanu et al. 2018).

    The score is a weight's rank among the existing ones of its sign, over their number; equal weights share a rank.
    """
    if len(view.weight) == 1 and not bool(view.exists.all()):  # sorting what does not exist would cost the most
        index = view.exists[0].nonzero().squeeze(1)
        packed = View(*(of[:, index] for of in (view.weight, view.exists, view.saliency, view.gradient)))
        return torch.full_like(view.weight, -1).index_copy_(1, index, signed(packed))
    score = torch.where(view.weight.isnan(), torch.nan, -torch.ones_like(view.weight))
    for sign in (1, -1):
        values = torch.where(view.exists & (view.weight * sign > 0), view.weight * sign, torch.inf)
        of_sign = values.isfinite()
        smaller = torch.searchsorted(values.sort(dim=1).values, values)
        rank = (smaller + 0.5) / of_sign.sum(dim=1, keepdim=True).clamp_min(1)
        score = torch.where(of_sign, rank.to(score.dtype), score)
    return score


def taylor(view: View) -> Tensor:
    """Smallest `abs(w * g)`, accumulated since the last event, goes (Molchanov et al. 2019)."""
    return view.saliency


def random(view: View) -> Tensor:
    """All equal: the seeded random order of ties decides."""
    return torch.zeros_like(view.weight)


def gradient(view: View) -> Tensor:
    """Largest `abs(g)` comes."""
    return view.gradient.abs()


DROP = {d.name: d for d in (Drop("magnitude", magnitude), Drop("signed", signed), Drop("taylor", taylor, True))}
GROW = {
    g.name: g
    for g in (
        Grow("random", random),
        Grow("gradient", gradient, "gradient"),
        Grow("sampled", gradient, "gradient", sample=1.0),
        Grow("accumulated", gradient, "accumulated"),
        Grow("momentum", gradient, "momentum"),
    )
}


@dataclass(frozen=True)
class Rule:
    """How a wiring evolves: drop + grow + scope + schedule, and where it comes from.

    Args:
        drop, grow: parts, or the names of parts (`DROP`, `GROW`).
        prune: where given, a falling density is met by a first drop within this scope, and the exchange that follows
            holds the counts (GraNet).
        grace: connections grown at the last event are not dropped at this one.
        reselect: what was just dropped may be chosen again, and then keeps value and state (RigL's code).
        replaces_step: the event takes the place of the optimiser's step (RigL's code).
        allocation: how the connections are spread at birth, unless `Topology` is told otherwise.
        source: the citation.  departures: where this, the published code and the published text differ.
    """

    name: str
    drop: Drop | str = "magnitude"
    grow: Grow | str = "random"
    scope: Scope = field(default_factory=Scope)
    schedule: Schedule = field(default_factory=Schedule)
    prune: Scope | None = None
    grace: bool = True
    reselect: bool = False
    replaces_step: bool = False
    allocation: str = "erk"
    source: str = ""
    departures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop", _part(self.drop, DROP, "drop"))
        object.__setattr__(self, "grow", _part(self.grow, GROW, "grow"))
        if self.prune is not None and self.schedule.start_density is None:
            raise UsageError(f"rule {self.name!r} has a prune scope but a constant density: give start_density")
        if self.prune is not None and self.scope.name == "row" and self.prune != self.scope:
            raise UsageError(
                f"rule {self.name!r} prunes by {self.prune.name}, which leaves rows uneven: "
                f"give prune the same row scope, or prune=None"
            )

    @property
    def drops(self) -> Drop:
        """The drop part."""
        assert isinstance(self.drop, Drop)
        return self.drop

    @property
    def grows(self) -> Grow:
        """The grow part."""
        assert isinstance(self.grow, Grow)
        return self.grow


def _part(given: Drop | Grow | str, known: dict, role: str) -> Drop | Grow:
    if not isinstance(given, str):
        return given
    if given not in known:
        raise UsageError(f"no {role} rule is called {given!r}: {nearest(given, known)}")
    return known[given]


def select(score: Tensor, candidates: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """The `counts[g]` candidates of each group with the smallest score; ties in a seeded random order.

    Ties come in masses (surrogate gradients are exactly 0, grown weights too), so by index whole rows would go; and a
    comparison with a threshold would take all of them: the number chosen is exact.

    Args:
        score: `[G, M]` fp32.  candidates: `[G, M]` bool.  counts: `[G]` int64, at most the candidates of each group.
        generator: on the CPU, so that the order is the same on every device and rank.

    Returns:
        `[G, M]` bool, True where chosen.

    Raises:
        TrainingError: a score is not a number.
    """
    chosen = torch.zeros_like(candidates)
    if not int(counts.sum()):
        return chosen
    if bool((score.isnan() & candidates).any()):
        raise TrainingError("a weight or gradient is not a number at a rewiring event: lower the learning rate")
    if len(score) == 1:
        index = candidates[0].nonzero().squeeze(1)
        chosen[0, index[_smallest(score[0, index], int(counts[0]), generator)]] = True
        return chosen
    # Many small groups: sort by a random key first; a stable sort by score then leaves ties in that order.
    order = torch.rand(score.shape, generator=generator, dtype=torch.float64).argsort(dim=1).to(score.device)
    last = torch.where(candidates, score.clamp(max=torch.finfo(score.dtype).max), torch.inf)
    order = order.gather(1, last.gather(1, order).argsort(dim=1, stable=True))
    ahead = torch.arange(score.shape[1], device=score.device) < counts.to(score.device).unsqueeze(1)
    return chosen.scatter_(1, order, ahead)


def _smallest(score: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices of the `n` smallest of `[M]`: all below the n-th value, and a random choice among those equal to it."""
    if n == 0:
        return score.new_zeros(0, dtype=torch.long)
    if bool((score == score[0]).all()):  # as where growth is random
        return torch.randperm(len(score), generator=generator)[:n].to(score.device)
    nth = score.topk(n, largest=False, sorted=False).values.max()  # kthvalue has no deterministic form on every GPU
    below = (score < nth).nonzero().squeeze(1)
    ties = (score == nth).nonzero().squeeze(1)
    order = torch.randperm(len(ties), generator=generator).to(score.device)
    return torch.cat([below, ties[order[: n - len(below)]]])
