"""`regraft doctor`: what this machine has, what is missing and what that costs, and a test of a few seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from regraft.cli.arguments import parse

if TYPE_CHECKING:
    from regraft.training.diagnosis import Finding
    from regraft.training.selftest import Check, Speed


@dataclass(frozen=True)
class Doctor:
    """Versions, processor, GPU, extras and data sets; what is missing, what it costs and how to get it.

    Then a tiny sparse spiking network is trained for a few seconds and looked at after every step: exit code 1 if a
    promise is broken. With a recipe, it says for each layer whether it will go over its existing connections here.
    """

    recipe: tyro.conf.Positional[str | None] = None
    """Recipe name or file, whose layers are looked at."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Parse, look, test, print."""
    given = parse(Doctor, arguments, verb="doctor", example="regraft doctor", default=Doctor())

    from regraft.training.diagnosis import findings, layers
    from regraft.training.selftest import self_test, speeds

    found = findings() + (layers(given.recipe) if given.recipe else [])
    if not given.json:
        _print(found)
    checks, measured = self_test(), speeds()
    healthy = all(check.passed for check in checks)
    if given.json:
        print(_json(found, checks, measured))
    else:
        _print_test(checks, measured)
        _print_missing(found, checks)
    return 0 if healthy else 1


def _print(found: list[Finding]) -> None:
    _table([(finding.topic, finding.name, finding.value) for finding in found])


def _print_test(checks: list[Check], measured: list[Speed]) -> None:
    from regraft.training.selftest import WORTH, best, bf16_gain

    rows = [("self-test", check.name, f"{'ok' if check.passed else 'FAILED'}: {check.said}") for check in checks]
    for key in dict.fromkeys((speed.operation, speed.threads) for speed in measured):
        own = {speed.precision: speed.gflops for speed in measured if (speed.operation, speed.threads) == key}
        threads = f"{key[1]} thread{'s' if key[1] > 1 else ''}"
        rows.append(("speed", f"{key[0]}, {threads}", ", ".join(f"{p} {g:.0f} GFLOP/s" for p, g in own.items())))
    gain = bf16_gain(measured)
    advice = "worth it: training.precision bf16" if gain >= WORTH else "not worth it here: stay with fp32"
    rows.append(("speed", "bf16", f"{gain:.1f} times fp32 (convolution); {advice}"))
    _table(rows)
    most = max(speed.threads for speed in measured)
    if best(measured, "fp32").threads < most:
        print(f"\nslow: {most} threads are slower than 1, so other programs use these cores.")
        print("    End them, or train on one: OMP_NUM_THREADS=1 regraft train ...")


def _print_missing(found: list[Finding], checks: list[Check]) -> None:
    missing = [finding for finding in found if finding.costs]
    for finding in missing:
        print(f"\nmissing: {finding.topic} {finding.name}: {finding.costs}\n    {finding.fix}")
    failed = [check.name for check in checks if not check.passed]
    if failed:
        print(f"\nThe self-test failed ({'; '.join(failed)}): do not trust results of this machine.")
        print("    Reinstall torch and regraft, run it again, and report it with the output of: regraft doctor --json")
    else:
        what = f"missing: {len(missing)}, and how to get it is said above" if missing else "nothing is missing"
        print(f"\nThe self-test passed; {what}.")


def _table(rows: list[tuple[str, str, str]]) -> None:
    """Aligned on a terminal, where long lines fold in their column; one plain line a row elsewhere."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        for topic, name, value in rows:
            print(f"{topic:<10} {name:<34} {value}", flush=True)
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", min_width=10)
    table.add_column(min_width=34)
    table.add_column(overflow="fold")
    before = ""
    for topic, name, value in rows:
        table.add_row("" if topic == before else topic, name, value)
        before = topic
    console.print(table)


def _json(found: list[Finding], checks: list[Check], measured: list[Speed]) -> str:
    import json
    from dataclasses import asdict

    kinds: dict[str, list[Any]] = {"findings": found, "checks": checks, "speeds": measured}
    tree: dict[str, Any] = {kind: [asdict(one) for one in rows] for kind, rows in kinds.items()}
    return json.dumps({"healthy": all(check.passed for check in checks), **tree}, indent=2)
