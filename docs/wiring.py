"""One animated picture of a training: the wiring of two layers that follow each other, from a run folder.

    regraft train digits --only sparse
    python docs/wiring.py runs/digits/sparse docs/wiring.svg

A row is one channel that the first layer computes and the second one reads; a column is a channel before or behind
them. A dot is a pair of channels with connections, larger where it has more of them. The animation runs in step with
the training: dots grow and go at the events, then the wiring stays as it is. CSS only, so it moves inside an <img>;
it follows the reader's light or dark preference, and shows the end where less motion is preferred.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from regraft.report import read_run
from regraft.report.runs import Run, read_wiring

WIDTH, MARGIN = 960, 24
DOTS = (0.44, 0.6, 0.74, 0.88)  # diameter of a dot of 1, 2, 3, and 4 or more connections, in cells
SECONDS, HOLD = 15.0, 2.5  # the training, then its end
POP, GLOW, FADE = 0.14, 1.5, 0.22  # how long a dot takes to grow, to lose its colour, to go

STYLE = """
svg{--ground:#fbfaf7;--panel:#f3f0e8;--ink:#1f1d1a;--soft:#625d55;--rule:#d9d4c8;--d:#57534b;--g:#0072b8;--l:#e0690b}
@media(prefers-color-scheme:dark){svg{--ground:#131417;--panel:#1b1d21;--ink:#ece9e2;--soft:#a5a096;--rule:#34363c;
--d:#b5b0a5;--g:#55b4f5;--l:#ff8f4f}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif;
fill:var(--soft);font-variant-numeric:tabular-nums}
.t{font-size:17px;font-weight:600;fill:var(--ink)}.n{font-size:21px;fill:var(--ink)}.e{text-anchor:end}
.w path{fill:none;stroke:var(--d);stroke-width:0;stroke-linecap:round}.w .s{stroke-width:var(--w)}
.acc{fill:none;stroke:var(--ink);stroke-width:2;stroke-linejoin:round}.up{fill:var(--g)}.down{fill:var(--l)}
""".strip()


class Clock:
    """Turns optimiser steps into percentages of the animation, and collects its keyframes."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.length = SECONDS + HOLD
        self.rules: dict[str, str] = {}

    def at(self, step: float, seconds: float = 0.0) -> float:
        """Percentage at which `step` is reached, plus some seconds; never outside the animation."""
        return min(100.0, max(0.0, 100 * (step / self.steps * SECONDS + seconds) / self.length))

    def animate(self, name: str, frames: Sequence[tuple[float, str]], timing: str = "linear") -> None:
        """Let the class `name` follow `frames`, pairs of a percentage and declarations; the first holds from 0 on."""
        places: dict[str, list[str]] = defaultdict(list)
        times = [0.0, *(time for time, _ in frames), 100.0]
        looks = [frames[0][1], *(look for _, look in frames), frames[-1][1]]
        for time, look in zip(times, looks, strict=True):
            places[look].append(f"{time:.2f}".rstrip("0").rstrip(".") + "%")
        body = "".join(f"{','.join(dict.fromkeys(at))}{{{look}}}" for look, at in places.items())
        self.rules[name] = f"@keyframes {name}{{{body}}}.{name}{{animation:{name} {self.length:g}s {timing} infinite}}"

    def style(self) -> str:
        """All keyframes, and their absence for readers who prefer less motion."""
        still = ",".join(f".{name}" for name in self.rules)
        return "\n".join([*self.rules.values(), f"@media(prefers-reduced-motion:reduce){{{still}{{animation:none}}}}"])


def lifetimes(maps: np.ndarray) -> dict[tuple[int, int, int], list[tuple[int, int]]]:
    """Cells (row, column) by (level, born, died) for counts `[states, rows, columns]`.

    A cell is at level `k` while it holds more than `k` connections; `died` is `states` for those alive at the end.
    """
    states = len(maps)
    found: dict[tuple[int, int, int], list[tuple[int, int]]] = defaultdict(list)
    for level in range(len(DOTS)):
        alive = np.pad(maps > level, ((1, 1), (0, 0), (0, 0)))
        turns = np.argwhere(np.moveaxis(alive[1:] != alive[:-1], 0, -1))
        for (row, column, born), (_, _, died) in zip(turns[::2], turns[1::2], strict=True):
            found[level, int(born), min(int(died), states)].append((int(row), int(column)))
    return found


def dots(cells: Sequence[tuple[int, int]]) -> str:
    """A path of one round dot for each cell, in cells; each move relative to the dot before."""
    row, column = cells[0]
    data = f"M{column} {row}h0"
    for r, c in cells[1:]:
        dc, dr = c - column, r - row
        data += f"m{dc}{'' if dr < 0 else ' '}{dr}h0"
        row, column = r, c
    return data


def panel(maps: np.ndarray, steps: Sequence[int], clock: Clock, x: float, y: float, cell: float) -> str:
    """The dots of one layer, each path animated by when it is born and dies."""
    _, rows, columns = maps.shape
    parts = [
        f'<rect x="{x}" y="{y}" width="{columns * cell:g}" height="{rows * cell:g}" rx="3" fill="var(--panel)"/>',
        f'<g class="w fade" transform="translate({x + cell / 2:g} {y + cell / 2:g}) scale({cell:g})">',
    ]
    groups = lifetimes(maps)
    for level, width in enumerate(DOTS):
        parts.append(f'<g style="--w:{width:g}">')
        for (own, born, died), cells in sorted(groups.items()):
            if own == level:
                stays = " s" if died == len(steps) else ""
                name = _life(born, died, steps, clock)
                parts.append(f'<path class="{name}{stays}" d="{dots(cells)}"/>'.replace('" s"', '"s"'))
        parts.append("</g>")
    return "\n".join([*parts, "</g>"])


def _life(born: int, died: int, steps: Sequence[int], clock: Clock) -> str:
    """The class of dots that grow at state `born` and go at `died`; empty for those that are always there."""
    name = f"a{born}-{died}"
    frames: list[tuple[float, str]] = []
    end = clock.at(steps[died], -FADE) if died < len(steps) else 100.0
    if born > 0:
        frames += [
            (clock.at(steps[born]), "stroke:var(--g);stroke-width:0"),
            (clock.at(steps[born], POP), "stroke:var(--g);stroke-width:calc(1.25*var(--w))"),
            (min(clock.at(steps[born], 2 * POP), end), "stroke:var(--g);stroke-width:var(--w)"),
            (min(clock.at(steps[born], GLOW), end), "stroke:var(--d);stroke-width:var(--w)"),
        ]
    if died < len(steps):
        frames += [
            (end, "stroke:var(--d);stroke-width:var(--w)"),
            (clock.at(steps[died]), "stroke:var(--l);stroke-width:calc(1.1*var(--w))"),
            (clock.at(steps[died], FADE), "stroke:var(--l);stroke-width:0"),
        ]
    if not frames:
        return ""
    if name not in clock.rules:
        clock.animate(name, frames)
    return name


def counter(name: str, label: str, values: Sequence[tuple[float, str]], clock: Clock, right: float, y: float) -> str:
    """A number that ticks: `(percentage, text)` one above the other in a window, moved by whole lines."""
    height = 28
    clock.animate(
        name, [(at, f"transform:translateY({-height * i}px)") for i, (at, _) in enumerate(values)], "step-end"
    )
    last = height * (len(values) - 1)
    lines = "".join(f'<text class="n e" x="130" y="{22 + height * i}">{t}</text>' for i, (_, t) in enumerate(values))
    return (
        f'<text class="e" x="{right}" y="{y}">{escape(label)}</text>'
        f'<svg x="{right - 130}" y="{y + 2}" width="130" height="{height}">'
        f'<g class="{name}" style="transform:translateY({-last}px)">{lines}</g></svg>'
    )


def counters(run: Run, clock: Clock) -> Iterator[str]:
    """Step, validation accuracy, and the share of connections that exist and that ever existed."""
    assert run.birth is not None
    ticks = 50
    steps = [(clock.at(clock.steps * i / ticks), f"{round(clock.steps * i / ticks):,}") for i in range(ticks + 1)]
    yield counter("cs", "step", steps, clock, 545, 34)
    accuracies = [(clock.at(e["step"]), _percent(e["valid"]["accuracy"])) for e in run.epochs]
    yield counter("ca", "validation accuracy", [(0, "–"), *accuracies], clock, 695, 34)
    start = run.birth["density"]
    exists = [(clock.at(e["step"]), _percent(e["density"])) for e in run.events]
    yield counter("cd", "connections", [(0, _percent(start)), *exists], clock, 820, 34)
    ever = [(clock.at(e["step"]), _percent(e["exploration"])) for e in run.events]
    yield counter("ce", "ever existed", [(0, _percent(start)), *ever], clock, WIDTH - MARGIN, 34)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def chart(run: Run, clock: Clock, y: float) -> Iterator[str]:
    """Validation accuracy over steps; below, what each event grew (up) and dropped (down); a cover that moves away."""
    left, right, high = MARGIN + 40, WIDTH - MARGIN, 92

    def across(step: float) -> float:
        return left + (right - left) * step / clock.steps

    for share in (0, 0.5, 1):
        level = y + high * (1 - share)
        yield f'<path d="M{left} {level}H{right}" stroke="var(--rule)"/>'
        yield f'<text class="e" x="{left - 8}" y="{level + 4}">{100 * share:.0f} %</text>'
    points = [(across(e["step"]), y + high * (1 - e["valid"]["accuracy"])) for e in run.epochs]
    yield '<path class="acc" d="M' + "L".join(f"{px:.1f} {py:.1f}" for px, py in points) + '"/>'
    middle = y + high + 36
    moved = {e["step"]: (sum(e["grown"].values()), sum(e["dropped"].values())) for e in run.events}
    most = max(max(pair) for pair in moved.values())
    yield f'<path d="M{left} {middle}H{right}" stroke="var(--rule)"/>'
    for step, (grown, dropped) in moved.items():
        up, down = 24 * grown / most, 24 * dropped / most
        yield f'<rect class="up" x="{across(step) - 3:.1f}" y="{middle - up:.1f}" width="6" height="{up:.1f}"/>'
        yield f'<rect class="down" x="{across(step) - 3:.1f}" y="{middle}" width="6" height="{down:.1f}"/>'
    still = max(moved)
    if still < 0.9 * clock.steps:
        yield f'<text x="{across(still) + 14:.1f}" y="{middle - 8}">the wiring stays as it is</text>'
    span = right - left
    clock.animate("move", [(0, "transform:translateX(0)"), (clock.at(clock.steps), f"transform:translateX({span}px)")])
    yield f'<svg x="{left - 4}" y="{y - 8}" width="{span + 8}" height="{high + 74}">'
    yield f'<g class="move" style="transform:translateX({span}px)">'
    yield f'<rect x="5" width="{span + 8}" height="{high + 74}" fill="var(--ground)" opacity=".86"/>'
    yield f'<path d="M4 0V{high + 74}" stroke="var(--ink)"/></g></svg>'


def picture(run: Run, names: tuple[str, str], maps: tuple[np.ndarray, np.ndarray], steps: Sequence[int]) -> str:
    """The whole SVG; `maps` are `[states, shared channels, other channels]`, one of each layer."""
    assert run.birth is not None
    clock = Clock(run.birth["steps"])
    clock.animate(
        "fade", [(0, "opacity:0"), (clock.at(0, 0.4), "opacity:1"), (99.0, "opacity:1"), (100.0, "opacity:0")]
    )
    before, behind = maps[0].shape[2], maps[1].shape[2]
    shared = maps[0].shape[1]
    cell = min(9.0, (WIDTH - 2 * MARGIN - 48) / (before + behind))
    second, top = WIDTH - MARGIN - behind * cell, 88.0
    below = top + shared * cell + 20
    title = f"{run.section('model').get('name')} on {run.section('data').get('name')}"
    rule = run.section("topology").get("rule")
    parts = [
        f'<text class="t" x="{MARGIN}" y="36">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="58">rule {escape(str(rule))}, {len(run.events)} events</text>',
        *counters(run, clock),
        panel(maps[0], steps, clock, MARGIN, top, cell),
        panel(maps[1], steps, clock, second, top, cell),
        f'<text x="{MARGIN}" y="{below}">{_caption(names[0], before, shared)}</text>',
        f'<text x="{second}" y="{below}">{_caption(names[1], shared, behind)}</text>',
        *_legend(below - 4),
        *chart(run, clock, below + 30),
    ]
    height = below + 30 + 92 + 72
    described = (
        f"The wiring of {names[0]} and {names[1]} over {clock.steps} steps: dots are pairs of connected channels; "
        f"blue ones have just grown, orange ones go. Below, the validation accuracy and the connections grown and "
        f"dropped at each event."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">',
            f"<title>{escape(title)}: wiring over training</title><desc>{escape(described)}</desc>",
            f"<style>\n{STYLE}\n{clock.style()}\n</style>",
            f'<rect width="{WIDTH}" height="{height:g}" rx="10" fill="var(--ground)"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _caption(name: str, inputs: int, outputs: int) -> str:
    return escape(f"{name.removesuffix('.weight')}: {inputs} → {outputs} channels")


def _legend(y: float) -> Iterator[str]:
    for x, colour, word in ((680, "--d", "exists"), (762, "--g", "grown"), (844, "--l", "dropped")):
        yield f'<circle cx="{x}" cy="{y}" r="4.5" fill="var({colour})"/><text x="{x + 11}" y="{y + 4}">{word}</text>'


def neighbours(maps: dict[str, dict[int, np.ndarray]]) -> tuple[str, str]:
    """The first two layers that both change and of which the second reads what the first computes, unit by unit."""
    changing = [name for name, by_step in maps.items() if len({m.tobytes() for m in by_step.values()}) > 1]
    for first, second in itertools.pairwise(changing):
        if next(iter(maps[first].values())).shape[0] == next(iter(maps[second].values())).shape[1]:
            return first, second
    raise SystemExit(f"no two layers that change and follow each other among {', '.join(maps)}: name them by --layers")


def main() -> None:
    """Read the run, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", nargs=2, metavar=("FIRST", "SECOND"))
    options = parser.parse_args()
    run = read_run(options.run)
    if not (run.finished and run.events and all(epoch["valid"] for epoch in run.epochs)):
        raise SystemExit(f"{options.run} must be a finished run with rewiring events and a validation split")
    maps = read_wiring(run)
    first, second = options.layers or neighbours(maps)
    steps = sorted(maps[first])
    stacks = np.stack([maps[first][s] for s in steps]), np.stack([maps[second][s].T for s in steps])
    options.out.write_text(picture(run, (first, second), stacks, steps), encoding="utf-8")
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
