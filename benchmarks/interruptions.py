"""Runs that are killed, that fill their disk, and whose folder becomes read-only: what is lost, and what comes out.

    python benchmarks/interruptions.py --kills 200 --json results/interruptions.json

Each run saves at every optimiser step. `kill -9` comes at a moment drawn evenly over the time of a whole run; after
each one every checkpoint and network on the disk is read, and the run goes on until it is killed again or ends. The
full disk is a real one, and needs the right to mount (else: skipped); so is the read-only folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from regraft.errors import RegraftError
from regraft.training.checkpoint import newest_checkpoint, read_tensors
from regraft.training.fit import fit
from regraft.training.recipe import Recipe, override, write_yaml
from regraft.training.run import environment

RECIPE = {
    "name": "interrupted",
    "data.name": "standin",
    "data.batch": 16,
    "model.steps": 2,
    "model.options": {"widths": [[4], [4]], "hidden": 8},
    "topology.density": 0.5,
    "topology.every": 2,
    "training.epochs": 12,
    "training.lr": 0.05,
    "distill.teacher": "average",  # a teacher that moves is a state, too
}


def train(folder: Path, recipe: Recipe) -> None:
    """What a process runs: it goes on with what is there."""
    torch.set_num_threads(1)
    fit(recipe, folder, resume=True, save_every=0)


def killed(folder: Path, recipe: Recipe, after: float | None) -> bool:
    """Train in a process of its own and send it SIGKILL after some seconds; whether that came before its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["regraft.training.fit"])
    process = context.Process(target=train, args=(folder, recipe))
    process.start()
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def unreadable(folder: Path) -> list[str]:
    """What cannot be read in a run folder, or only by falling back on an older checkpoint."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            newest_checkpoint(folder)
        except (RegraftError, UserWarning) as error:
            found.append(str(error))
    for name in ("last", "best"):
        if (folder / f"{name}.safetensors").exists():
            try:
                read_tensors(folder / f"{name}.safetensors")
            except RegraftError as error:
                found.append(str(error))
    return found


def same_networks(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same bits, in weights and wiring, at the end and at the chosen epoch."""
    for name in ("last", "best"):
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (first, second))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return False
    return True


def kill_often(recipe: Recipe, place: Path, times: int) -> dict[str, Any]:
    """Kill runs that many times in all, each gone on with until it ends."""
    killed(place / "whole", recipe, None)
    began = time.perf_counter()
    killed(place / "again", recipe, None)  # by now the server that makes the processes has started
    length = time.perf_counter() - began
    draw = random.Random(0)
    kills = runs = equal = before_any = 0
    bad: list[str] = []
    while kills < times:
        folder = place / f"run{runs}"
        while killed(folder, recipe, draw.random() * 1.2 * length if kills < times else None):
            kills += 1
            before_any += not (folder / "checkpoints").exists()
            bad += unreadable(folder)
        equal += same_networks(place / "whole", folder)
        shutil.rmtree(folder)
        runs += 1
    return {
        "kills": kills,
        "before_the_first_checkpoint": before_any,
        "runs": runs,
        "unreadable": bad,
        "runs_equal_to_the_uninterrupted_one": equal,
    }


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A file system of 8 MB at `place`; False where this may not be done."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    """Leave no room on the disk."""
    with contextlib.suppress(OSError), (place / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(4096))
            filler.flush()


def protect(place: Path, *, writable: bool) -> None:
    """Take the right to write from a folder and all in it, or give it back."""
    for path in [place, *place.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200 if writable else path.stat().st_mode & ~0o222)


def run_until_it_fails(place: Path, recipe: Recipe, full: bool) -> dict[str, Any]:
    """The command line on a disk that fills, or in a folder that becomes read-only, and then again with room."""
    out, file = place / "run", place.parent / "recipe.yaml"
    write_yaml(recipe, file)
    command = [sys.executable, "-m", "regraft", "train", str(file), "--out", str(out), "--save-every", "0"]
    if os.geteuid() == 0:  # permissions do not bind root, unless it gives up that privilege
        command = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override", *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    while "epoch 3/" not in process.stdout.readline():
        assert process.poll() is None, process.stderr and process.stderr.read()
    fill(place) if full else protect(out, writable=False)
    _, said = process.communicate(timeout=300)
    saved = newest_checkpoint(out)
    found = {
        "exit_code": process.returncode,
        "said": said.strip().replace(str(place), "DISK").splitlines(),
        "unreadable": unreadable(out),
        "checkpoint_at_step": saved[1]["position"]["step"] if saved else None,
    }
    (place / "filler").unlink() if full else protect(out, writable=True)
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=env, timeout=300)
    whole = place.parent / f"{place.name}-whole"
    killed(whole, recipe, None)
    return {
        **found,
        "exit_code_of_resume": again.returncode,
        "equal_to_the_uninterrupted_one": same_networks(whole, out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    recipe = override(Recipe(), RECIPE)
    found: dict[str, Any] = {"environment": environment()}
    with tempfile.TemporaryDirectory() as temporary:
        disk, folder = Path(temporary) / "disk", Path(temporary) / "folder"
        disk.mkdir()
        folder.mkdir()
        with small_disk(disk) as may:
            found["full_disk"] = run_until_it_fails(disk, recipe, True) if may else "skipped: no right to mount"
        print("full disk", json.dumps(found["full_disk"], indent=2))
        found["read_only_folder"] = run_until_it_fails(folder, recipe, False)
        print("read-only folder", json.dumps(found["read_only_folder"], indent=2))
        found["kill_9"] = kill_often(recipe, Path(temporary), given.kills)
        print("kill -9", json.dumps(found["kill_9"], indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
