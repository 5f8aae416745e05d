"""The Triton engine. Triton reads TRITON_INTERPRET when it is imported, so its tests run in a process of their own:
on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is missing: a CUDA build of torch brings it; elsewhere pip install -r requirements/triton.txt",
)


def run(cases: str, **environment: str) -> None:
    """Run a file of tests beside this one; fail with what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", str(Path(__file__).parent / cases)]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_spikes_and_gradients_are_those_of_float64():
    run("triton_cases.py", **({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}))


def test_the_compiler_takes_what_the_interpreter_takes(tmp_path):
    run("triton_compiler.py", TRITON_CACHE_DIR=str(tmp_path))
