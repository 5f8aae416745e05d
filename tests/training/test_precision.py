"""What a training computes in: chosen once, kept when it goes on elsewhere, and told by what it left."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.errors import Interrupted, RunError
from regraft.kernels import processor
from regraft.training import step
from regraft.training.build import precision_of
from regraft.training.checkpoint import read_tensors, write_tensors
from regraft.training.fit import fit
from regraft.training.load import load
from regraft.training.state import same_precision

build, fit_module = (importlib.import_module(f"regraft.training.{name}") for name in ("build", "fit"))


def fast(monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    monkeypatch.setattr(build, "fast_bf16", lambda: yes)


@pytest.mark.parametrize("yes", [True, False])
def test_auto_is_what_this_machine_is_fast_at(tiny, monkeypatch, yes):
    fast(monkeypatch, yes)
    changes: dict[str, Any] = {"training.device": "cpu"}
    assert precision_of(tiny({**changes, "training.precision": "auto"})) == ("bf16" if yes else "fp32")
    assert [precision_of(tiny({**changes, "training.precision": p})) for p in ("bf16", "fp32")] == ["bf16", "fp32"]


@pytest.mark.parametrize(
    ("line", "yes"),
    [
        ("flags\t\t: fpu sse avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_tile amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx512f avx512bw", False),
        ("Features\t: fp asimd ebf16x", False),
        ("model name\t: amx_bf16", False),
    ],
)
def test_a_processor_is_fast_at_bf16_where_it_has_instructions_for_it(monkeypatch, line, yes):
    monkeypatch.setattr(processor, "_cpuinfo", lambda: ["processor\t: 0", line])
    assert processor.fast_bf16() == yes


@pytest.mark.parametrize("saved", [None, "auto", "fp16", 16, ["bf16"]])
def test_a_checkpoint_that_does_not_say_is_refused(saved):
    assert [same_precision({"precision": p}) for p in ("bf16", "fp32")] == ["bf16", "fp32"]
    with pytest.raises(RunError, match="precision"):
        same_precision({} if saved is None else {"precision": saved})


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(tiny, tmp_path, monkeypatch):
    """On a machine for which `auto` means something else."""
    recipe, folder = tiny({"training.precision": "auto", "training.device": "cpu"}), tmp_path / "run"
    used: list[Any] = []
    forward = step.forward

    def noted(parts: Any, *rest: Any) -> Any:
        logits, loss = forward(parts, *rest)
        used.append((parts.precision, logits.dtype, loss.dtype))
        return logits, loss

    monkeypatch.setattr(fit_module, "forward", noted)
    fast(monkeypatch, True)
    with pytest.raises(Interrupted):
        fit(recipe, folder, watch=lambda record: os.kill(os.getpid(), signal.SIGTERM))
    fast(monkeypatch, False)
    before = len(used)
    fit(recipe, folder, resume=True)
    assert 0 < before < len(used)
    assert set(used) == {("bf16", torch.bfloat16, torch.float32)}
    assert json.loads((folder / "environment.json").read_text())["precision"] == "bf16"
    assert load(folder).precision == "bf16"


def test_a_saved_network_says_what_it_was_trained_in(trained, tmp_path):
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    tensors, manifest = read_tensors(folder / "last.safetensors")
    assert (manifest["precision"], load(folder).precision) == ("fp32", "fp32")
    write_tensors(folder / "last.safetensors", tensors, {k: v for k, v in manifest.items() if k != "precision"})
    assert load(folder).precision == trained.recipe.training.precision, "of a run from before it was written"
    write_tensors(folder / "last.safetensors", tensors, {**manifest, "precision": "auto"})
    with pytest.raises(RunError, match="precision 'auto'"):
        load(folder)
