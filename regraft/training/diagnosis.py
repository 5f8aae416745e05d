"""What this machine has for training, what it lacks, what that costs, and what to do about it. Trains nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch

import regraft
from regraft.data import training_batches
from regraft.execution import shipped
from regraft.execution.calibration import boundary
from regraft.execution.engines import engine
from regraft.kernels.library import instruction_set, library
from regraft.kernels.processor import fast_bf16, processor, processor_flags
from regraft.training.build import arithmetic, assemble
from regraft.training.pool import usable_cores
from regraft.training.recipe import DistillSettings
from regraft.training.study import load_study

EXTRAS = {
    "digits": "the data set digits, and with it `regraft train digits`",
    "stats": "exact intervals where the report compares seeds",
    "nir": "reading and writing NIR",
    "ray": "`regraft sweep --backend ray`",
}
"""What each extra is for; one that is not here is listed without it."""

X86 = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX512-BF16": "avx512_bf16", "AMX": "amx_tile"}
REBUILD = "install a C compiler (gcc or clang), then: pip install --force-reinstall --no-deps regraft"
ARM = {"NEON": "asimd", "SVE": "sve", "bf16": "bf16"}


@dataclass(frozen=True)
class Finding:
    """One fact. Where something is missing, `costs` says what that costs and `fix` what to run."""

    topic: str
    name: str
    value: str
    costs: str = ""
    fix: str = ""


def findings() -> list[Finding]:
    """Everything that can be said without training."""
    kinds = (_versions, _processor, _gpus, _kernels, _connections, _extras, _data)
    parts: tuple[Callable[[], Iterator[Finding]], ...] = kinds
    return [finding for part in parts for finding in part()]


def layers(source: str | Path) -> list[Finding]:
    """For each arm of a recipe and each layer that its topology wires: how it is computed here, at birth.

    Raises what `assemble` raises.
    """
    found = []
    for arm, recipe in load_study(source).arms.items():
        alone = replace(recipe, distill=DistillSettings())
        parts = assemble(alone)
        if parts.topology.connections == parts.topology.possible:
            found.append(Finding("layers", arm, "all connections exist: dense products"))
            continue
        x, _ = next(iter(training_batches(parts.data.train, recipe.data.batch, seed=0, epoch=1, augment=None)))
        with torch.no_grad(), arithmetic(x.device, parts.precision):
            parts.model(x)
        for name, why in parts.execution.choices.items():
            found.append(Finding("layers", f"{arm}: {name}", f"dense: {why}" if why else "over connections, in fp32"))
    return found


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "regraft", regraft.__version__)
    yield Finding("versions", "python", f"{sys.version.split()[0]}, {platform.system()} {platform.machine()}")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
    build = build if torch.version.cuda or torch.version.hip else "CPU only"
    yield Finding("versions", "torch", f"{torch.__version__}, {build}")
    for name in ("numpy", "safetensors"):
        yield Finding("versions", name, metadata.version(name))


def _processor() -> Iterator[Finding]:
    yield Finding("processor", "model", processor())
    flags, known = processor_flags(), ARM if platform.machine().lower() in ("aarch64", "arm64") else X86
    if flags:
        missing = not fast_bf16()
        yield Finding(
            "processor",
            "features",
            ", ".join(f"{name} {'yes' if flag in flags else 'no'}" for name, flag in known.items()),
            "bf16 is emulated, so training.precision auto means fp32 here" if missing else "",
            "nothing to install" if missing else "",
        )
    else:
        yield Finding("processor", "features", f"{torch.backends.cpu.get_cpu_capability()} (as torch sees them)")
    usable, logical, threads = usable_cores(), os.cpu_count() or 1, torch.get_num_threads()
    physical = physical_cores()
    cores = f"{logical} logical" if physical is None else f"{physical} physical, {logical} logical"
    yield Finding("processor", "cores", f"{cores}; {usable} usable")
    idle = threads < min(usable, physical or usable)
    yield Finding(
        "processor",
        "threads",
        f"torch uses {threads}",
        f"one training leaves {usable - threads} of {usable} cores idle" if idle else "",
        "unset OMP_NUM_THREADS (or leave it, and train several runs at once: regraft sweep)" if idle else "",
    )
    memory = memory_bytes()
    if memory is not None:
        total, free = memory
        small = free < 2 * 2**30
        yield Finding(
            "processor",
            "memory",
            f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free",
            "data sets lie in memory: CIFAR takes 0.2 GB, a network's activations as much again" if small else "",
            "close something, or lower data.batch" if small else "",
        )


def physical_cores() -> int | None:
    """Cores without their second threads; None where the system does not say."""
    lists = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    try:
        return len({path.read_text(encoding="utf-8").strip() for path in lists}) or None
    except OSError:
        return None


def memory_bytes() -> tuple[int, int] | None:
    """Memory of this machine, or what its container may use, and what of it is free; None where nobody says."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    free = int(found[1]) * 1024 if found else total
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and int(limit) < total:
        total, free = int(limit), min(free, int(limit) - int(used or 0))
    return total, free


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _gpus() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        capability = f"capability {card.major}.{card.minor}, {card.total_memory / 2**30:.0f} GiB"
        yield Finding("GPU", f"cuda:{index}", f"{card.name}, {capability}")
    if torch.cuda.device_count():
        return
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if driver and not torch.version.cuda:
        yield Finding(
            "GPU",
            "none",
            "there is a driver, but this torch is built for the processor only",
            "everything runs on the processor",
            "pip install --force-reinstall torch  (which build: https://pytorch.org/get-started/locally)",
        )
    elif driver:
        yield Finding(
            "GPU", "none", "there is a driver, but torch sees no GPU", "everything runs on the processor", "nvidia-smi"
        )
    else:
        yield Finding("GPU", "none", "no GPU found: everything runs on the processor, as most recipes are meant to")


def _kernels() -> Iterator[Finding]:
    lacking = "" if library() else "torch computes in their place: a training step takes 1.1 to 1.5 times as long"
    value = f"{instruction_set()}" if library() else "none"
    fix = "unset REGRAFT_KERNELS" if os.environ.get("REGRAFT_KERNELS") == "off" else REBUILD
    yield Finding("kernels", "compiled", value, lacking, fix if lacking else "")
    if torch.cuda.is_available():
        there = engine("cuda") is not None
        costs = "" if there else "neurons run as separate operations on the GPU"
        yield Finding("kernels", "triton", "yes" if there else "none", costs, "" if there else "pip install triton")
    precision = "bf16" if (torch.cuda.is_bf16_supported() if torch.cuda.is_available() else fast_bf16()) else "fp32"
    yield Finding("kernels", "precision auto", f"{precision} on this machine")


def _connections() -> Iterator[Finding]:
    """Below which density layers of usual sizes go over their connections."""
    table = shipped()
    if not library():
        return
    sizes = {f"3x3 over {channels} channels": ("convolution", 9 * channels) for channels in (32, 128, 512)}
    sizes |= {f"linear, {units} units": ("linear", units) for units in (128, 512)}
    for name, (kind, size) in sizes.items():
        known = [arithmetic for arithmetic in ("fp32", "bf16") if table.boundaries.get(f"{kind} {arithmetic}")]
        below = {arithmetic: boundary(table, kind, arithmetic, size) for arithmetic in known}
        said = [f"{density:.0%} ({arithmetic})" for arithmetic, density in below.items() if density]
        value = f"over connections below {', '.join(said)}" if said else "dense products are faster"
        yield Finding("density", name, value)


def _extras() -> Iterator[Finding]:
    """By the package's own metadata: `Requires-Dist: scipy>=1.11; extra == "stats"`."""
    needed: dict[str, list[str]] = {name: [] for name in metadata.metadata("regraft").get_all("Provides-Extra") or []}
    for line in metadata.requires("regraft") or []:
        of = re.search(r"""extra\s*==\s*['"]([^'"]+)""", line)
        name = re.match(r"[\w.-]+", line)
        if of and name:
            needed.setdefault(of[1], []).append(name[0])
    for extra, packages in needed.items():
        found = {package: _version(package) for package in packages}
        lacking = [package for package, version in found.items() if version is None]
        text = ", ".join(f"{package} {version or 'not installed'}" for package, version in found.items())
        costs = f"no {EXTRAS.get(extra, 'part that needs it')}" if lacking else ""
        yield Finding("extras", extra, text, costs, f"pip install 'regraft[{extra}]'" if lacking else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _data() -> Iterator[Finding]:
    from regraft.data.survey import survey

    for row in survey():
        absent = row.state in ("missing", "damaged")
        where = row.state if absent else f"{row.state}: {row.where}"
        costs = f"recipes on {row.name} cannot be trained" if absent else ""
        yield Finding("data", row.name, where, costs, row.advice if absent else "")
