"""Whether an arm is better than the baseline, said with the care that few seeds allow.

Differences are paired by seed: the same seed gives two arms the same split, order and first weights, so what the seed
does to both cancels. Intervals are adjusted over the family of comparisons after Holm (1979, "A simple sequentially
rejective multiple test procedure").
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regraft.errors import MissingExtraError, UsageError, nearest
from regraft.report.runs import Run

Word = Literal["held", "contradicted", "undecided"]

MINIMUM_SEEDS = 3
POWER = 0.8
"""Power at which the smallest detectable difference is stated."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over `n` seeds; `sd` is NaN for a single one."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Verdict:
    """The claim "`arm` is better than `baseline`" (a larger value is better), and what the seeds say about it.

    `mean`, `sd`: of the paired differences arm - baseline. `low`, `high`: their t interval at the confidence `level`
    that Holm's procedure gives this comparison; `p` the adjusted two-sided p value. `detectable`: the smallest true
    difference that `n` seeds with this `sd` find with 80 % power at that level.
    """

    arm: str
    baseline: str
    n: int
    mean: float
    sd: float
    low: float
    high: float
    level: float
    p: float
    detectable: float
    word: Word


def summary(values: Mapping[str, Mapping[int, float]]) -> dict[str, Summary]:
    """Mean and standard deviation of each arm over its seeds; `values` is arm -> seed -> value."""
    return {
        arm: Summary(
            statistics.fmean(by_seed.values()),
            statistics.stdev(by_seed.values()) if len(by_seed) > 1 else math.nan,
            len(by_seed),
        )
        for arm, by_seed in values.items()
        if by_seed
    }


def compare(values: Mapping[str, Mapping[int, float]], baseline: str, *, confidence: float = 0.95) -> list[Verdict]:
    """Compare every other arm of `values` (arm -> seed -> value, larger is better) with the baseline, paired by seed.

    With `m` comparisons, p values ascending, the i-th is judged at `alpha/(m - i + 1)`; from the first that is not
    rejected on, all keep that one's level. So an interval excludes 0 exactly where Holm's procedure rejects. Where
    the differences have no spread at all, a t interval is not defined: the verdict is *undecided*, its interval
    unbounded.

    Raises:
        UsageError: unknown baseline, fewer than 3 seeds, seeds that differ between arms, values that are not finite.
        MissingExtraError: scipy is not installed.
    """
    _check(values, baseline, confidence)
    stats = _scipy_stats()
    alpha = 1 - confidence
    seeds = sorted(values[baseline])
    arms = [arm for arm in values if arm != baseline]
    differences = {arm: [values[arm][seed] - values[baseline][seed] for seed in seeds] for arm in arms}
    raw = {arm: _p_value(differences[arm], _scale(values[arm]), stats) for arm in arms}

    levels: dict[str, float] = {}
    adjusted: dict[str, float] = {}
    rejecting, level, worst = True, alpha, 0.0
    for rank, arm in enumerate(sorted(arms, key=raw.__getitem__)):
        left = len(arms) - rank
        if rejecting:
            level = alpha / left
            rejecting = raw[arm] < level
        worst = max(worst, min(1.0, left * raw[arm]))
        levels[arm], adjusted[arm] = level, worst
    return [
        _verdict(arm, baseline, differences[arm], _scale(values[arm]), levels[arm], adjusted[arm], stats)
        for arm in arms
    ]


def by_arm(runs: Sequence[Run], which: Literal["last", "selected"] = "last") -> dict[str, dict[int, float]]:
    """Test accuracy of the finished runs, arm -> seed -> value: what `summary` and `compare` take."""
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.result is not None:
            values.setdefault(run.name, {})[run.seed] = run.result["accuracy"][which]
    return values


def _verdict(
    arm: str, baseline: str, differences: list[float], scale: float, level: float, p: float, stats: Any
) -> Verdict:
    n, mean, sd = len(differences), statistics.fmean(differences), statistics.stdev(differences)
    if _no_spread(sd, scale):
        low, high, detectable = -math.inf, math.inf, math.nan
    else:
        margin = float(stats.t.ppf(1 - level / 2, n - 1)) * sd / math.sqrt(n)
        low, high = mean - margin, mean + margin
        detectable = _detectable(n, sd, level, stats)
    word: Word = "held" if low > 0 else "contradicted" if high < 0 else "undecided"
    return Verdict(arm, baseline, n, mean, sd, low, high, 1 - level, p, detectable, word)


def _p_value(differences: list[float], scale: float, stats: Any) -> float:
    n, sd = len(differences), statistics.stdev(differences)
    if _no_spread(sd, scale):
        return 1.0
    return 2 * float(stats.t.sf(abs(statistics.fmean(differences)) / (sd / math.sqrt(n)), n - 1))


def _detectable(n: int, sd: float, level: float, stats: Any) -> float:
    """The difference at which a two-sided paired t test has 80 % power, by bisection on the noncentral t."""
    critical = float(stats.t.ppf(1 - level / 2, n - 1))
    low, high = 0.0, 2 * critical + 10
    for _ in range(40):
        middle = (low + high) / 2
        power = float(stats.nct.sf(critical, n - 1, middle) + stats.nct.cdf(-critical, n - 1, middle))
        low, high = (middle, high) if power < POWER else (low, middle)
    return high * sd / math.sqrt(n)


def _scale(by_seed: Mapping[int, float]) -> float:
    return max(abs(value) for value in by_seed.values())


def _no_spread(sd: float, scale: float) -> bool:
    # Equal differences of rounded numbers differ in the last bits: that is no spread.
    return sd <= 1e-12 * max(scale, 1e-300)


def _check(values: Mapping[str, Mapping[int, float]], baseline: str, confidence: float) -> None:
    if baseline not in values:
        raise UsageError(f"no arm is called {baseline!r}; {nearest(baseline, values)}")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}: give a share between 0 and 1, for example 0.95")
    seeds = set(values[baseline])
    if len(seeds) < MINIMUM_SEEDS:
        raise UsageError(
            f"a claim needs {MINIMUM_SEEDS} or more seeds; the baseline {baseline!r} has {len(seeds)}. Train more seeds"
        )
    for arm, by_seed in values.items():
        if set(by_seed) != seeds:
            odd = ", ".join(map(str, sorted(set(by_seed) ^ seeds)))
            raise UsageError(
                f"{arm!r} and the baseline {baseline!r} do not have the same seeds (only one of them has {odd}): "
                f"pairing needs both. Train what is missing, or leave those seeds out of both"
            )
        if not all(math.isfinite(value) for value in by_seed.values()):
            raise UsageError(f"{arm!r} has a value that is not finite: a run that failed cannot be averaged")


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise MissingExtraError("scipy", "stats", "comparing arms over seeds") from None
    return stats
