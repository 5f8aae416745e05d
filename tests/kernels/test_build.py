"""How the kernels are compiled, found and chosen; and that they stay within their arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regraft.kernels import build

HERE = Path(__file__).parent
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.skipif("CI" not in os.environ, reason="at home a compiler may be missing; where it counts it may not")
def test_the_kernels_are_there():
    from regraft.kernels.library import library

    assert library() is not None


def test_without_a_compiler_it_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no C compiler was found"):
        build.compile_library(tmp_path / build.NAME)


@pytest.mark.parametrize("cc", ["no-such-compiler", "false"])
def test_what_the_compiler_says_is_passed_on_and_nothing_is_left(tmp_path, monkeypatch, cc):
    monkeypatch.setenv("CC", cc)
    with pytest.raises(build.BuildError, match=cc):
        build.compile_library(tmp_path / build.NAME)
    assert not list(tmp_path.iterdir())


TRAIN = """
import torch
from regraft.execution.engines import engine
from regraft.kernels.library import instruction_set, library
from regraft.models import tiny_vgg
import regraft
torch.manual_seed(0)
net = tiny_vgg()
regraft.execute(net)
net(torch.rand(8, 1, 8, 8)).square().mean().backward()
print(library() is not None, instruction_set(), float(net.features[0].weight.grad.norm()))
"""


@needs_compiler
def test_every_instruction_set_computes_the_same():
    """Sums are cut into lanes of other widths, so they are equal but for rounding."""
    norms = []
    for isa in build.instruction_sets():
        done = python(TRAIN, REGRAFT_ISA=isa)
        if "this processor can do" in done.stderr:
            continue
        there, chosen, norm = done.stdout.split()
        assert (there, chosen) == ("True", isa)
        norms.append(float(norm))
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-5)


def test_an_unknown_instruction_set_is_answered_with_those_there_are():
    done = python("from regraft.kernels.library import instruction_set; instruction_set()", REGRAFT_ISA="avx1024")
    assert "UsageError: REGRAFT_ISA is 'avx1024': this processor can do" in done.stderr
    assert "portable" in done.stderr


def test_kernels_can_be_left_alone():
    there, _, norm = python(TRAIN, REGRAFT_KERNELS="off").stdout.split()
    assert there == "False"
    assert float(norm) == pytest.approx(float(python(TRAIN).stdout.split()[2]), rel=1e-3)


def test_a_library_of_another_machine_is_left_alone(tmp_path):
    broken = tmp_path / build.NAME
    broken.write_bytes(b"not machine code")
    code = f"import regraft.kernels.library as l, pathlib; l.PATH = pathlib.Path({str(broken)!r}); print(l.library())"
    assert python(code).stdout.strip() == "None"


def sanitised(folder: Path, isa: str, store: str, driver: str, sources: list[str]) -> subprocess.CompletedProcess[str]:
    """Sources and a driver, compiled with the sanitisers and run over random shapes."""
    stores = build.STORES | {"f64": "F64"}
    number = {"F32": "1", "BF16": "2", "F64": "3"}[stores[store]]
    names = ["-DF32=1", "-DBF16=2", "-DF64=3", f"-DSTORE={number}", f"-DTYPE={store}", f"-DISA={isa}"]
    cc = build.compiler()
    assert cc is not None
    checks = ['-DREGRAFT_SOURCES=""', "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    texts = [*(str(build.SOURCES / name) for name in (*sources, "threads.c")), str(HERE / driver)]
    flags = [flag for flag in build.FLAGS if flag != "-O3"]
    command = [*cc, *flags, *build.instruction_sets()[isa], *checks, *names, "-I", str(build.SOURCES), *texts]
    subprocess.run([*command, "-o", str(folder / "run"), "-lm"], check=True)
    return subprocess.run([folder / "run", "400", "1"], capture_output=True, text=True)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("isa", build.instruction_sets())
@pytest.mark.parametrize("store", [*build.STORES, "f64"])
def test_sanitisers_find_nothing(tmp_path, isa, store):
    """Random shapes, T from 1 to 64, odd sizes, empty batches, values that are not finite."""
    done = sanitised(tmp_path, isa, store, "sanitised.c", ["segment.c"])
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("isa", build.instruction_sets())
@pytest.mark.parametrize("store", ["f32", "f64"])
def test_sanitisers_find_nothing_in_sparse_layers(tmp_path, isa, store):
    """Random shapes, strides, paddings, halos, tails of blocks, layers with few connections or none."""
    done = sanitised(tmp_path, isa, store, "sanitised_sparse.c", [f"{name}.c" for name in build.SPARSE])
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr
