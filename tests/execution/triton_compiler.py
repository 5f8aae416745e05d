"""The Triton engine's kernels through Triton's compiler, for a GPU that need not be there. Run by `test_triton.py`."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from regraft.execution import triton as engine
from regraft.execution.fire import Fire

KERNELS = ["_walk", "_walk_back", "_moments_of_share", "_moments_of_all", "_renormalise"]
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", float: "fp32", int: "i32"}


class Compiled:
    """In place of a kernel: compiles it for the arguments of its call instead of running it."""

    def __init__(self, kernel: Any, spills: dict[str, str], folder: Any) -> None:
        self.kernel, self.spills, self.folder = kernel, spills, folder

    def __getitem__(self, grid: Any) -> Any:
        return self.compile

    def compile(self, *values: Any, num_warps: int = 4) -> None:
        signature, constants, attributes = {}, {}, {}
        for place, (parameter, value) in enumerate(zip(self.kernel.params, values, strict=True)):
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[(place,)] = "constexpr", value
                continue
            signature[parameter.name] = TYPES[value.dtype if isinstance(value, Tensor) else type(value)]
            if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
        path = self.folder / "kernel.ptx"
        path.write_text(made.asm["ptx"])
        command = [triton.knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", str(path), "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        self.spills[self.kernel.fn.__name__] = said


@pytest.mark.parametrize(
    ("steps", "repeat", "terms", "pool", "amount", "surrogate", "dtype"),
    [
        (4, False, 2, False, None, "triangle", torch.bfloat16),
        (4, False, 2, True, None, "rectangle", torch.float32),
        (4, True, 1, True, 1.0, "atan", torch.bfloat16),
        (16, False, 1, True, None, "sigmoid", torch.float32),
    ],
)
def test_for_an_h200_without_spills(monkeypatch, tmp_path, steps, repeat, terms, pool, amount, surrogate, dtype):
    spills: dict[str, str] = {}
    for name in KERNELS:
        monkeypatch.setattr(engine, name, Compiled(getattr(engine, name), spills, tmp_path))
    how = Fire(steps, repeat, 1.0, surrogate, 1.0, amount, False, True)
    y = torch.zeros(2 * (1 if repeat else steps), 128, 4, 16, dtype=dtype).to(memory_format=torch.channels_last)
    line, decay = torch.zeros(128), torch.tensor(0.5)
    terms = [engine.moments(y, line, line, 1e-5, 0.1, (line, line))] * terms
    spikes = engine.fire(how, decay, terms, pool)
    gx, _, _ = engine.unfire(how, decay, terms, spikes, pool, True)
    engine.renormalise(gx, terms[0], line, line, into=True)
    assert set(spills) == set(KERNELS)
    for name, said in spills.items():
        assert "0 bytes spill stores, 0 bytes spill loads" in said, (name, said)
