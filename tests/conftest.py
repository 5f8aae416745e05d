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


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """In CI a test of a peer that skips has failed: its library is there but does not import."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and item.get_closest_marker("peers"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which no test of a peer may do in CI: {call.excinfo and call.excinfo.value}"


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    """Figures of tests depend neither on the order of tests nor on the number of cores."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
