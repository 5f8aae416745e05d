"""What holds for all tests."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

PEERS = ("spikingjelly", "snntorch", "norse", "sinabs", "nir", "neurobench")


def pytest_sessionstart(session: pytest.Session) -> None:
    """At home the tests of peers skip without them; in CI a missing peer ends the session."""
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("CI"):
        pytest.exit(f"peers are missing in CI: {', '.join(missing)}. Run: make peers", returncode=3)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    """Figures of tests depend neither on the order of tests nor on the number of cores."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
