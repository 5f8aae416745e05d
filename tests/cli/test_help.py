"""Help that a newcomer can use, and that is there at once."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys

import pytest

VERBS = ("train", "eval", "report", "data", "sweep", "doctor", "list")
SMALL = " --data.name standin --data.batch 24 --training.epochs 1 --topology.every 1"


@pytest.mark.parametrize("line", ["--help", *(f"{verb} --help" for verb in VERBS)])
def test_help_is_quick_and_needs_no_torch(here, line):
    code = (
        "import sys; from regraft.cli.main import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(code, [m for m in ('torch', 'numpy', 'matplotlib', 'sklearn') if m in sys.modules], file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(line)], capture_output=True, text=True, timeout=60, cwd=here
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr.strip() == "0 []"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6, (
        "seconds of CPU; 0.3 on an idle core"
    )
    assert done.stdout.startswith("regraft ")
    assert sorted(os.listdir(here)) == ["tiny.yaml"]


def test_the_first_line_of_each_help_is_a_command_that_runs(regraft, here):
    """In the order in which a newcomer meets them; only the training is made smaller."""

    def first(line: str) -> str:
        said = regraft(line)
        assert said.code == 0
        head = said.out.splitlines()[0]
        assert head.startswith("regraft ")
        return head.removeprefix("regraft ")

    start = first("--help")
    assert regraft(start + SMALL).code == 0
    assert (here / "runs" / "digits" / "report.html").exists()
    for verb in ("eval", "report", "list", "train"):
        command = first(f"{verb} --help")
        assert shlex.split(command)[0] == verb
        said = regraft(command + (SMALL if verb == "train" else ""))
        assert said.code == 0, said.err
        assert said.out
    assert json.loads((here / "runs" / "digits-1" / "sparse" / "result.json").read_text())["seed"] == 1


def test_help_says_what_each_flag_is(regraft):
    said = regraft("train --help")
    text = " ".join(said.out.replace("│", " ").split())
    for part in ("--training.epochs INT", "Passes over the training set. (default: 30)", "--topology.density FLOAT"):
        assert part in text
    for verb in VERBS:
        assert f"regraft {verb}" in regraft("").out, "no argument at all is a question for help"


def test_the_version_is_the_packages(regraft):
    import regraft as package

    assert regraft("--version").out.strip() == f"regraft {package.__version__}"
