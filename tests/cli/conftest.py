"""The command line as a user meets it: in a folder of its own, by arguments, to exit code and text."""

from __future__ import annotations

import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from regraft.cli.main import main

RECIPE = """\
data: {name: standin, batch: 16}
model: {steps: 2, options: {widths: [[4], [4]], hidden: 8}}
topology: {density: 0.5, every: 2}
training: {epochs: 2, lr: 0.05}
"""


@dataclass
class Said:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line of an error; warnings are not errors."""
        lines = [line for line in self.err.splitlines() if not line.startswith("regraft: warning:")]
        assert "Traceback" not in self.err, self.err
        assert len(lines) == 1, self.err
        assert lines[0].startswith("regraft: "), self.err
        return lines[0].removeprefix("regraft: ")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, with `tiny.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def regraft(here, monkeypatch, capfd):
    """`regraft("train tiny.yaml")` in this process: as fast as the command, once torch is there."""

    def run(line: str) -> Said:
        with monkeypatch.context() as patch:
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            patch.setattr(sys, "path", list(sys.path))
            capfd.readouterr()
            try:
                code = main(shlex.split(line))
            except SystemExit as stop:  # --help
                code = stop.code if isinstance(stop.code, int) else 1
            said = capfd.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def process(here):
    """The same in a process of its own."""

    def run(line: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "regraft.cli.main", *shlex.split(line)],
            capture_output=True,
            text=True,
            timeout=100,
            cwd=here,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def files(here):
    """`files()`: everything below the folder, with its content."""

    def found() -> dict[Path, bytes]:
        return {path.relative_to(here): path.read_bytes() for path in here.rglob("*") if path.is_file()}

    return found
