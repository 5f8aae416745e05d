"""Named rules from the literature, each with its source and where text, code and this package differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from regraft.errors import UsageError, nearest
from regraft.structure.rules import Rule, Scope
from regraft.structure.schedule import Schedule

_ALL = (
    Rule(
        "static",
        schedule=Schedule(zeta=0),
        source="the control: a fixed random wiring, ERK (Evci et al. 2020, arXiv 1911.11134)",
    ),
    Rule(
        "set",
        drop="signed",
        grow="random",
        schedule=Schedule(zeta=0.3, decay="constant"),
        allocation="er",
        source="Mocanu et al. 2018, Nature Communications 9:2383",
        departures=(
            "text: new weights are drawn at random; here they start at 0, so that growing changes no output",
            "google-research/rigl drops by magnitude with noise of 1e-5 for ties; here by sign, as the text has it",
            "text: ER on linear layers; here ER on the two channel axes of every layer (allocation='erk' for kernels)",
        ),
    ),
    Rule(
        "rigl",
        drop="magnitude",
        grow="gradient",
        schedule=Schedule(zeta=0.3),
        grace=False,
        reselect=True,
        replaces_step=True,
        source="Evci et al. 2020, arXiv 1911.11134; google-research/rigl",
        departures=(
            "follows the code: the event replaces the optimiser's step, and what was just dropped may be chosen again",
            "the code's exchange is constant by default; here cosine, as in the text",
            "the code's first event may be at step 0; here at step `every`",
        ),
    ),
    Rule(
        "gse",
        drop="magnitude",
        grow="sampled",
        schedule=Schedule(zeta=0.2),
        source="Heddes et al. 2024, arXiv 2401.06898; mikeheddes/guided-stochastic-exploration",
        departures=(
            "the sample is uniform; the text's GraBo and GraEst draw it by estimates of the gradient",
            "the code exchanges between layers by default (its scope `global`); here each layer keeps its count",
            "the code takes the gradient of further batches; here that of the event's step",
        ),
    ),
    Rule(
        "snfs",
        drop="magnitude",
        grow="momentum",
        schedule=Schedule(zeta=0.5),
        source="Dettmers & Zettlemoyer 2019, arXiv 1907.04840; google-research/rigl's version",
        departures=(
            "text: connections move between layers in proportion to their mean momentum; here, as in google-research/"
            "rigl, each layer keeps its count (scope='network' lets them move, by momentum over all layers)",
            "the momentum is a running average (0.9) of the dense gradient, whatever the optimiser keeps",
            "TimDettmers/sparse_learning drifts from its density (its issue 22); counts are exact here",
        ),
    ),
    Rule(
        "itop",
        drop="magnitude",
        grow="gradient",
        schedule=Schedule(zeta=0.5),
        source="Liu et al. 2021, arXiv 2102.02887",
        departures=(
            "text: its point is long intervals (1000 steps and more), so that what grew is trained: set `every`",
            "the code lets zeta end at 0.005; here the cosine ends at 0",
            "the code's growth is Bernoulli, so its density drifts; counts are exact here",
        ),
    ),
    Rule(
        "gmp",
        drop="magnitude",
        schedule=Schedule(zeta=0, start_density=1.0),
        source="Zhu & Gupta 2017, arXiv 1710.01878",
        departures=(
            "text: the same density in each layer; here by the allocation asked for (ERK unless told)",
            "text: pruning may begin after a dense warm-up (t0); here at the first event (t0 = 0)",
        ),
    ),
    Rule(
        "granet",
        drop="magnitude",
        grow="gradient",
        schedule=Schedule(zeta=0.5, start_density=0.5),
        prune=Scope("network"),
        source="Liu et al. 2021, arXiv 2106.10404 (GraNet-ST: sparse to sparse)",
        departures=(
            "start_density=1 gives the dense-to-sparse version",
            "the code rounds removals up and lets zeta end at 0.005; here exact counts and a cosine to 0",
        ),
    ),
    Rule(
        "ndsnn",
        drop="magnitude",
        grow="gradient",
        schedule=Schedule(zeta=0.5, start_density=0.5),
        source="Huang et al. 2023, arXiv 2304.12214 (no code published)",
        departures=("the start of zeta is not given in what we read; the text starts between densities 0.3 and 0.5",),
    ),
    Rule(
        "esl",
        drop="magnitude",
        grow="random",
        schedule=Schedule(zeta=0.3, decay="constant"),
        allocation="er",
        source="Shen et al. 2023, ESL-SNNs, arXiv 2306.03693 (no code published)",
        departures=(
            "growth by gradient or momentum is the text's alternative: preset('esl', grow='gradient')",
            "the value of zeta is not given in what we read; here SET's",
        ),
    ),
)

PRESETS: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _ALL})
_SCHEDULE = {f.name for f in fields(Schedule)}


def preset(name: str | Rule, /, **changes: Any) -> Rule:
    """The rule of that name (or the rule itself), with some of its fields (or its schedule's) changed.

    >>> preset("rigl", zeta=0.1).schedule.zeta
    0.1

    Raises `UsageError` for an unknown name or field.
    """
    if isinstance(name, str) and name not in PRESETS:
        raise UsageError(f"no rule is called {name!r}: {nearest(name, PRESETS)}")
    rule = PRESETS[name] if isinstance(name, str) else name
    known = _SCHEDULE | {f.name for f in fields(Rule)}
    for key in changes:
        if key not in known:
            raise UsageError(f"a rule has no setting {key!r}: {nearest(key, known)}")
    timing = {key: changes.pop(key) for key in list(changes) if key in _SCHEDULE}
    return replace(rule, schedule=replace(changes.pop("schedule", rule.schedule), **timing), **changes)
