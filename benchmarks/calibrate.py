"""Below which density is a layer faster over its existing connections? Measures the table that `execute` goes by.

    python benchmarks/calibrate.py [--json PATH] [--quick] [--write KIND]

Three layers of equal width, convolutions with normalisation and neuron or linear ones with a neuron, take a whole
training step: dense in fp32, dense in bf16 where the processor multiplies in it, and over connections at several
densities, in interleaved rounds on one thread. A boundary lies where the medians of two densities straddle the dense
one, in between on logarithms. Convolutions of few inputs are measured as what they are: a whole first layer, of images
(the same at each step) or of events, before one that goes over a tenth of its connections. `--write` puts the table
into the package under the name of an instruction set: `avx512`, `avx2`, `portable` (x86 without AVX) or `other`. For
one that is narrower than the processor's own: `REGRAFT_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/calibrate.py
--write avx2`, and `portable` with `SSE41`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import regraft
from regraft.execution import Calibration, described, keep_pages
from regraft.kernels.library import instruction_set
from regraft.kernels.processor import fast_bf16, processor, processor_flags
from regraft.neurons import LIF

TABLE = Path(regraft.__file__).parent / "execution" / "calibration.json"
SHAPES = [  # channels and side of the map
    (8, 32),
    (16, 32),
    (32, 32),
    (64, 16),
    (128, 16),
    (256, 8),
    (512, 4),
]
FIRST = [(2, 64), (3, 32)]  # input channels and side
DENSITIES = (0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05)
UNITS = (64, 128, 256, 512, 1024, 2048)
IMAGES, STEPS = 32, 4
ARITHMETICS = ("fp32", *["bf16"] * (fast_bf16() and "REGRAFT_ISA" not in os.environ))
"""Where narrower instructions than the processor's own are measured, products in bf16 are emulated."""
KINDS = ("convolution", "linear")
Case = tuple[nn.Module, Tensor, float | None]
"""A network, its input and, where its first layer is in question, which is whole, the density behind that."""
ALWAYS = Calibration("always", {f"{kind} {key}": [(1.0, 1.0)] for kind in KINDS for key in ("fp32", "bf16")})


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="three rounds in the place of five")
    parser.add_argument("--write", metavar="KIND", choices=["avx512", "avx2", "portable", "other"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_pages()
    rounds = 3 if options.quick else 5
    rows = {
        "convolution": [
            *(measured(9 * c, first(c, side), rounds, (1.0,)) for c, side in FIRST),
            *(measured(9 * c, convolutions(c, side), rounds) for c, side in SHAPES),
        ],
        "linear": [measured(units, linears(units), rounds) for units in UNITS],
    }
    boundaries = {
        f"{kind} {key}": [(row["size"], row["boundary"][key]) for row in rows[kind]]
        for kind in KINDS
        for key in ARITHMETICS
    }
    features = sorted(processor_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"})
    table = Calibration(f"{processor()}; kernels for {instruction_set()}; {' '.join(features)}", boundaries)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"table": described(table), "rows": rows}, indent=2) + "\n")
    if options.write:
        kinds = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
        kinds[options.write] = described(table)
        TABLE.write_text(json.dumps(kinds, indent=2) + "\n", encoding="utf-8")


def measured(size: int, make: Callable[[], Case], rounds: int, densities: Sequence[float] = DENSITIES) -> dict:
    """One size: medians of all variants, and where connections begin to win."""
    steps = {key: stepping(make, size, None, bf16=key == "bf16") for key in ARITHMETICS}
    densities = [density for density in densities if density * size >= 1]
    steps |= {f"{density:g}": stepping(make, size, density, bf16=False) for density in densities}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            seconds = step()
            if round_:  # the first one allocates
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    over = [(density, median[f"{density:g}"]) for density in densities]
    found = {key: crossing(over, median[key]) for key in ARITHMETICS}
    print(
        f"{size:5}:",
        ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in median.items()),
        "ms;",
        found,
        flush=True,
    )
    return {"size": size, "s": median, "boundary": found}


def crossing(over: list[tuple[float, float]], dense: float) -> float:
    """The density at which connections take as long as the dense layer; `over`: density and seconds, falling."""
    if over[0][1] <= dense:
        return over[0][0]
    for (high, slow), (low, fast) in itertools.pairwise(over):
        if fast <= dense < slow:
            share = math.log(dense / fast) / math.log(slow / fast)
            return round(low * (high / low) ** share, 3)
    return 0.0


def first(channels: int, side: int) -> Callable[[], Case]:
    """A whole one before one over a tenth of its connections."""

    def make() -> Case:
        static = channels == 3
        net = nn.Sequential(
            *(nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), LIF(steps=STEPS, static=static)),
            *(nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), LIF(steps=STEPS)),
        )
        images = IMAGES if static else STEPS * IMAGES
        return net, torch.rand(images, channels, side, side).round(), 0.1

    return make


def convolutions(channels: int, side: int) -> Callable[[], Case]:
    """Three of 3x3 behind one that makes spikes, and their input."""

    def make() -> Case:
        layers: list[nn.Module] = [nn.Conv2d(2, channels, 1), nn.BatchNorm2d(channels), LIF(steps=STEPS, static=True)]
        for _ in range(3):
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), LIF(steps=STEPS)]
        x = torch.randn(IMAGES, 2, side, side).contiguous(memory_format=torch.channels_last)
        return nn.Sequential(*layers), x, None

    return make


def linears(units: int) -> Callable[[], Case]:
    """Three of them behind one that makes spikes, and their input."""

    def make() -> Case:
        layers: list[nn.Module] = [nn.Linear(4, units), LIF(steps=STEPS, static=True)]
        for _ in range(3):
            layers += [nn.Linear(units, units), LIF(steps=STEPS)]
        return nn.Sequential(*layers), torch.randn(IMAGES, 4), None

    return make


def stepping(make: Callable[[], Case], size: int, density: float | None, *, bf16: bool) -> Callable[[], float]:
    """A training step of a network; returns its seconds of the processor."""
    torch.manual_seed(0)
    model, x, behind = make()
    topology = None
    if behind is not None or density is not None:
        share = density if behind is None else behind
        topology = regraft.Topology(model, share, "static", allocation="uniform", exclude=["0.weight"])
    table = ALWAYS
    if behind is not None and density is None:
        table = Calibration("all but the first", {key: [(size, 0.0), (size + 1, 1.0)] for key in ALWAYS.boundaries})
    regraft.execute(model, topology, table)
    y = model(x)
    g = torch.randn(y.shape)
    g = g.contiguous(memory_format=torch.channels_last) if g.dim() == 4 else g

    def step() -> float:
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = model(x)
        y.backward(g.to(y.dtype))
        model.zero_grad()
        return time.process_time() - start

    return step


if __name__ == "__main__":
    main()
