"""Compiles the C sources to one shared library, for every instruction set that this kind of processor may have.

Run by the package's build (`setup.py`), which goes on without kernels where there is no compiler; by hand:
`python -m regraft.kernels.build`. The library has a plain C interface, so one build serves all versions of Python
and torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
NAME = "_regraft.so"

# What is contracted, the sources say: the backward pass has to find the same spikes again.
FLAGS = [
    "-std=c11",
    "-O3",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wno-psabi",
]
X86 = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
}
STORES = {"f32": "F32", "bf16": "BF16"}
SPARSE = ("sparse", "blocked", "dense_gradient")


class BuildError(Exception):
    """What the compiler said."""


def fingerprint() -> str:
    """Of the sources as they are now; a library says which ones it was compiled from."""
    texts = [path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]"))]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def instruction_sets() -> dict[str, list[str]]:
    """Name -> flags of the compiler, for this kind of processor."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return (X86 if x86 else {}) | {"portable": []}


def compiler() -> list[str] | None:
    """The C compiler to use: `CC`, or the first of cc, gcc and clang; None if there is none."""
    if given := os.environ.get("CC"):
        return shlex.split(given)
    return next(([found] for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def compile_library(target: Path, extra: list[str] | None = None) -> None:
    """Write the shared library `target`. Raises `BuildError` with what was missing or what the compiler said."""
    cc = compiler()
    if cc is None:
        raise BuildError("no C compiler was found (cc, gcc, clang, or CC in the environment)")
    x86 = ["-DREGRAFT_X86"] if len(instruction_sets()) > 1 else []
    units = [("threads.c", "threads", [f'-DREGRAFT_SOURCES="{fingerprint()}"'])]
    for isa, flags in instruction_sets().items():
        units += [("segment.c", f"segment_{t}_{isa}", [*flags, *_type(t, s, isa)]) for t, s in STORES.items()]
        sparse = [*flags, *_type("f32", "F32", isa)]
        units += [(f"{name}.c", f"{name}_{isa}", sparse) for name in SPARSE]
    # Double precision is for tests of exactness, and needs no speed.
    units += [(f"{name}.c", f"{name}_f64", _type("f64", "F64", "portable")) for name in ("segment", *SPARSE)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        objects = [Path(folder) / f"{name}.o" for _, name, _ in units]

        def one(unit: tuple[str, str, list[str]], output: Path) -> None:
            source, _, flags = unit
            _run([*cc, *FLAGS, *x86, *flags, *(extra or []), "-c", str(SOURCES / source), "-o", str(output)])

        list(pool.map(one, units, objects))
        built = Path(folder) / NAME
        _run([*cc, "-shared", *(extra or []), "-o", str(built), *map(str, objects), "-lm"])
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_suffix(".new")  # a process that has the old library loaded keeps it
        shutil.copyfile(built, beside)
        beside.replace(target)


def _type(name: str, store: str, isa: str) -> list[str]:
    return [f"-DSTORE={store}", f"-DTYPE={name}", f"-DISA={isa}"]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} could not be started: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")


if __name__ == "__main__":
    try:
        compile_library(Path(__file__).parent / NAME, sys.argv[1:])
    except BuildError as error:
        sys.exit(str(error))
