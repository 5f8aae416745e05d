"""One picture of the speed of sparse training: step time against density, dense rivals as lines.

    python benchmarks/sparse_step.py --json results/sparse_step.json
    python docs/speed.py results/sparse_step.json docs/speed.svg

Both axes are logarithmic. A point is the median of one interleaved run; what rivals took is its median too. The
picture follows the reader's light or dark preference.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 960, 330, 24
RIVALS = {
    "spikingjelly": "SpikingJelly 2.0",
    "spikingjelly-pages": "SpikingJelly 2.0, our allocator settings",
    "regraft-dense": "regraft, dense",
    "floor": "dense convolutions alone",
}
STYLE = """
svg{--ground:#fbfaf7;--ink:#1f1d1a;--soft:#625d55;--rule:#d9d4c8;--line:#0072b8}
@media(prefers-color-scheme:dark){svg{--ground:#131417;--ink:#ece9e2;--soft:#a5a096;--rule:#34363c;--line:#55b4f5}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif;
fill:var(--soft);font-variant-numeric:tabular-nums}
.t{font-size:17px;font-weight:600;fill:var(--ink)}.b{fill:var(--ink)}.e{text-anchor:end}.m{text-anchor:middle}
.rule{stroke:var(--rule)}.rival{fill:none;stroke:var(--soft);stroke-dasharray:5 4}
.own{fill:none;stroke:var(--line);stroke-width:2.5;stroke-linejoin:round}.dot{fill:var(--line)}
""".strip()


def medians(found: dict[str, Any], workload: str) -> tuple[dict[str, float], dict[float, float]]:
    """Milliseconds of a step on one thread, uniform allocation: of each rival, and of ours by density."""
    rows = [row for row in found["rows"] if row["workload"] == workload and row["threads"] == 1]
    rows = [row for row in rows if row.get("allocation", "uniform") == "uniform"]
    batch = min(row["batch"] for row in rows)
    rows = [row for row in rows if row["batch"] == batch]
    rivals = {row["variant"]: 1e3 * row["median_s"] for row in rows if row["variant"] in RIVALS}
    own = {row["density"]: 1e3 * row["median_s"] for row in rows if row["variant"].endswith("%")}
    return rivals, own


def panel(title: str, rivals: dict[str, float], own: dict[float, float], above: float) -> Iterator[str]:
    """One workload; its upper edge is at `above`."""
    left, right, top, low = MARGIN + 64.0, WIDTH - MARGIN - 300.0, above + 44, above + HEIGHT - 40
    values = [*rivals.values(), *own.values()]
    least, most = 0.8 * min(values), 1.1 * max(values)
    densest, sparsest = max(own), min(own)

    def across(density: float) -> float:
        return left + 24 + (right - left - 48) * math.log(densest / density) / math.log(densest / sparsest)

    def up(ms: float) -> float:
        return low - (low - top) * math.log(ms / least) / math.log(most / least)

    yield f'<text class="b" x="{left}" y="{above + 24}">{escape(title)}</text>'
    for ms in (20, 50, 100, 200, 500, 1000, 2000, 5000):
        if least <= ms <= most:
            yield f'<path class="rule" d="M{left} {up(ms):.1f}H{right}"/>'
            yield f'<text class="e" x="{left - 8}" y="{up(ms) + 4:.1f}">{ms:,} ms</text>'
    for density in own:
        yield f'<text class="m" x="{across(density):.1f}" y="{low + 22}">{100 * density:g} %</text>'
    beside = top - 20
    for name, ms in sorted(rivals.items(), key=lambda rival: -rival[1]):
        beside = max(beside + 16, up(ms) + 4)  # labels keep out of each other's way
        yield f'<path class="rival" d="M{left} {up(ms):.1f}H{right}L{right + 12} {beside - 4:.1f}"/>'
        yield f'<text x="{right + 18}" y="{beside:.1f}">{RIVALS[name]}: {ms:,.0f}</text>'
    points = [(across(density), up(ms), ms) for density, ms in sorted(own.items(), reverse=True)]
    yield '<path class="own" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points) + '"/>'
    for x, y, ms in points:
        yield f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
        yield f'<text class="b m" x="{x:.1f}" y="{y - 11:.1f}">{ms:,.0f}</text>'
    yield f'<text class="b" x="{right + 18}" y="{points[-1][1] + 4:.1f}">regraft, over connections</text>'


def picture(found: dict[str, Any]) -> str:
    """The whole SVG."""
    titles = {"cifar": "spiking VGG, 32 x 32, T = 4", "dvs": "event network, 64 x 64, T = 16"}
    workloads = [name for name in titles if any(row["workload"] == name for row in found["rows"])]
    parts = []
    for index, name in enumerate(workloads):
        batch = min(row["batch"] for row in found["rows"] if row["workload"] == name)
        parts += panel(f"{titles[name]}, batch {batch}", *medians(found, name), 46.0 + index * HEIGHT)
    height = 46 + HEIGHT * len(workloads) + 8
    processor = found["environment"]["processor"]
    said = f"Milliseconds of a whole training step, by density: {processor}, one core, fp32"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(said)}</title>",
            f"<style>\n{STYLE}\n</style>",
            f'<rect width="{WIDTH}" height="{height}" rx="10" fill="var(--ground)"/>',
            f'<text class="t" x="{MARGIN}" y="38">{escape(said)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.write_text(picture(json.loads(options.figures.read_text(encoding="utf-8"))), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
