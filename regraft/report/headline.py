"""The sentences at the top of the page: what was trained, which arm did best, what it cost.

The validation split chooses; the test split is only read. Where an arm has several seeds, it is their mean that is
chosen and told, never the luckiest of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from regraft.report.runs import Run
from regraft.report.table import Row, density, percent
from regraft.report.verdicts import MINIMUM_SEEDS

Sentence = list[tuple[str, bool]]
"""Pieces of text, each with whether it is set bold."""


@dataclass(frozen=True)
class Arm:
    """The finished runs of one name, with their rows of the table."""

    name: str
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]

    @property
    def validated(self) -> float | None:
        """Accuracy on the validation split at the selected epoch, mean over seeds; None without such a split."""
        values = [run.result["accuracy"].get("valid_selected") for run in self.runs if run.result]
        return None if None in values else statistics.fmean(values)

    @property
    def sparse(self) -> bool:
        """Whether any connection is absent."""
        return any(row.connections is not None and row.connections < 1 for row in self.rows)


def best_arms(runs: Sequence[Run], rows: Sequence[Row]) -> list[Arm]:
    """The arm that is best on the validation split and the best sparse one; one arm if they are the same.

    None of several arms is best where there is no validation split: the test split must not choose.
    """
    pairs = [pair for pair in zip(runs, rows, strict=True) if pair[0].finished]
    arms = []
    for name in dict.fromkeys(run.name for run, _ in pairs):
        own = [pair for pair in pairs if pair[0].name == name]
        arms.append(Arm(name, tuple(run for run, _ in own), tuple(row for _, row in own)))
    judged = {arm.name: arm.validated for arm in arms}
    if len(arms) > 1 and None in judged.values():
        return []
    chosen = [
        max(some, key=lambda arm: judged[arm.name] or 0.0)
        for some in (arms, [arm for arm in arms if arm.sparse])
        if some
    ]
    return chosen[:1] if len(chosen) == 2 and chosen[0] is chosen[1] else chosen


def sentences(runs: Sequence[Run], best: Sequence[Arm]) -> Iterator[Sentence]:
    """What was trained, then one sentence for each of the best arms."""
    yield [(_trained(runs), False)]
    if not best and any(run.finished for run in runs):
        yield [("Without a validation split no arm is called best: the test split chooses nothing.", False)]
    elif not best:
        yield [("No run has finished yet; what follows is what their logs hold so far.", False)]
    opening = "Best on the validation split is " if len({run.name for run in runs}) > 1 else ""
    for arm in best:
        yield [(opening, False), (arm.name, True), *_reached(arm)]
        opening = "Among the sparse arms it is "


def caution(runs: Sequence[Run]) -> str:
    """Said where several arms have too few seeds to claim that they differ; empty elsewhere."""
    names = {run.name for run in runs}
    seeds = min(len({run.seed for run in runs if run.name == name}) for name in names)
    if len(names) < 2 or seeds >= MINIMUM_SEEDS:
        return ""
    number = "One seed" if seeds == 1 else f"{seeds} seeds"
    return f"{number} an arm: a difference between arms is an observation, not a claim. A claim needs {MINIMUM_SEEDS}."


def commands(best: Sequence[Arm]) -> list[tuple[str, str]]:
    """(arms, command) that reproduce the arms named above; a command that trains both of them stands once."""
    found: dict[str, list[str]] = {}
    for arm in best:
        for run in arm.runs[:1]:
            if run.result is not None:
                found.setdefault(run.result["command"], []).append(arm.name)
    return [(" and ".join(arms), command) for command, arms in found.items()]


def _trained(runs: Sequence[Run]) -> str:
    def names(section: str) -> str:
        found = dict.fromkeys(str(run.section(section).get("name", "")) for run in runs)
        return ", ".join(name for name in found if name)

    arms = len({run.name for run in runs})
    seeds = max(len({run.seed for run in runs if run.name == arm}) for arm in {run.name for run in runs})
    alike = len({run.seed for run in runs}) == 1
    steps = sorted({run.result["synops"]["steps"] for run in runs if run.result})
    epochs = max((record["epoch"] for run in runs for record in run.epochs[-1:]), default=0)
    model, data = names("model"), names("data")
    parts = [
        f"{_in_words(arms)} arms" if arms > 1 else "One run" if len(runs) == 1 else "One arm",
        f" of {model}" if model else "",
        f" on {data}" if data else "",
        f", {' or '.join(map(str, steps))} time steps" if steps else "",
        f", {epochs} epochs" if epochs else "",
        f", {seeds} seeds." if seeds > 1 else f", seed {runs[0].seed}." if alike else ", one seed each.",
    ]
    return "".join(parts)


def _in_words(number: int) -> str:
    words = ["Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve"]
    return words[number - 2] if 2 <= number <= 12 else str(number)


def _reached(arm: Arm) -> Sentence:
    row = arm.rows[0]
    accuracies = [one.accuracy for one in arm.rows if one.accuracy is not None]
    reached = percent(statistics.fmean(accuracies), row.test_samples)
    if len(accuracies) > 1:
        reached = f"{reached} ± {percent(statistics.stdev(accuracies), row.test_samples)}"
    over = f" (mean and standard deviation over {len(accuracies)} seeds)" if len(accuracies) > 1 else ""
    pieces: Sentence = [
        (": ", False),
        (f"{reached}\u00a0%", True),
        (f" of {row.test_samples:,} test samples right at its last epoch{over}, with ", False),
    ]
    if arm.sparse:
        pieces += [(f"{density(row.connections)}\u00a0%", True), (" of the connections", False)]
    else:
        pieces += [("all of its connections", False)]
    if row.synaptic is not None and arm.sparse:
        pieces += [
            (" and ", False),
            (f"{density(row.synaptic)}\u00a0%", True),
            (" of the dense synaptic operations", False),
        ]
    taught = [one.teacher_accuracy for one in arm.rows if one.teacher_accuracy is not None]
    if taught:
        pieces += [(f". Its teacher got {percent(statistics.fmean(taught), row.test_samples)}\u00a0% right", False)]
    return [*pieces, (".", False)]
