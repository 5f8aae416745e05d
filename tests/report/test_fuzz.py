"""Run folders damaged at random: a page or one clear error, never another exception."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save

from regraft.errors import RegraftError
from regraft.report import Table, find_runs
from regraft.report.html import render

ODD = [
    None, True, "", "no", "\ud800", "</script>", [], [1], {}, {"a": {"b": 1}}, -1, 0, 1, 64, 1e-320, 0.5, 1e31, 1e308,
    2**31, 2**53, 2**70, 10**400, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
TEXTS = ("recipe.yaml", "log.jsonl", "result.json", "environment.json")
ARRAYS = ("wiring.safetensors", "last.safetensors", "activity.safetensors")


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four bits flipped, a piece cut out, doubled or overwritten, or the end lost."""
    at, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    kind = rng.randrange(5)
    if kind == 0:
        out = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            # Headers stand first: half of the flips go there.
            out[rng.randrange(len(data) if rng.random() < 0.5 else min(600, len(data)))] ^= 1 << rng.randrange(8)
        return bytes(out)
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:end] + data[at:]
    if kind == 3:
        return data[:at] + rng.randbytes(rng.randint(1, 12)) + data[end:]
    return data[:at]


def damage_value(value: Any, rng: random.Random) -> Any:
    """The same nested value with one place replaced by something odd, taken out, or put under another name."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(ODD)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    out = value.copy()
    deed = rng.random()
    if deed < 0.1:
        del out[key]
    elif deed < 0.2 and isinstance(out, dict):
        out[rng.choice(["", "x", "kind", "0"])] = out.pop(key)
    else:
        out[key] = damage_value(value[key], rng)
    return out


def damage_text(name: str, data: bytes, rng: random.Random) -> bytes:
    """A file of JSON or YAML that still is one, with a value in it that nobody meant."""
    if name == "recipe.yaml":
        return yaml.safe_dump(damage_value(yaml.safe_load(data), rng), allow_unicode=True).encode("utf-8", "replace")
    if name == "log.jsonl":
        lines = data.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(damage_value(json.loads(lines[at]), rng))
        return "\n".join(lines).encode()
    return json.dumps(damage_value(json.loads(data), rng)).encode()


def damage_arrays(data: dict[str, np.ndarray], rng: random.Random) -> bytes:
    """A safetensors file with one array gone, renamed, of another type or shape, or with odd values."""
    out = dict(data)
    key = rng.choice(sorted(out))
    value = out[key]
    names = ["", "x", "0/", "birth/x", "spikes/x", "masks/x", "9" * 30 + "/x"]
    deeds: list[Callable[[], Any]] = [
        lambda: out.pop(key),
        lambda: out.update({rng.choice(names): out.pop(key)}),
        lambda: out.update({key: value.astype(rng.choice([np.float64, np.int64, np.uint8, np.bool_, np.float16]))}),
        lambda: out.update({key: value.reshape(-1)}),
        lambda: out.update({key: value[:0]}),
        lambda: out.update({key: np.ascontiguousarray(value.T)}),
        lambda: out.update({key: np.zeros(rng.choices(range(4), k=rng.randrange(6)), value.dtype)}),
        lambda: out.update({key: np.full(value.shape, rng.choice([np.nan, np.inf, -np.inf, 1e38]), np.float32)}),
        lambda: out.update({key: np.full(value.shape, rng.choice([-1, 2**31, 2**62]), np.int64)}),
    ]  # fmt: skip
    rng.choice(deeds)()
    return save(out)


def mutants(name: str, path: Path, seed: int, number: int):
    data = path.read_bytes()
    arrays = load_file(path) if name in ARRAYS else {}
    for k in range(number):
        rng = random.Random(f"{name} {seed} {k}")
        if rng.random() < 0.4:
            yield damage_bytes(data, rng)
        else:
            yield damage_arrays(arrays, rng) if arrays else damage_text(name, data, rng)


def look_at(study: Path) -> bool:
    """Whether the report of this folder is a page; a message that is one line where it is none."""
    try:
        runs = find_runs(study)
        Table.of(runs).markdown()
        page = render(runs)
    except RegraftError as error:
        said = str(error)
        clear = 20 < len(said) < 1000 and "\n" not in said
        if not clear:
            raise ValueError(f"no clear message: {said!r}") from None
        return False
    assert page.startswith("<!doctype html>")
    assert page.encode("utf-8", "replace")
    return True


def survive(write, name: str, seed: int, number: int) -> None:
    """Damage one file of one of two runs, look, and put it back; both outcomes must occur."""
    teacher = {"kind": "sparse", "accuracy": 0.9, "density": 0.02, "seconds": 18.0, "name": "teacher"}
    run = write("a", teacher=teacher)
    write("b", finished=False)
    path, good = run / name, (run / name).read_bytes()
    assert look_at(run.parent)
    pages = 0
    for k, mutant in enumerate(mutants(name, path, seed, number)):
        path.write_bytes(mutant)
        try:
            pages += look_at(run.parent)
        except Exception as error:
            raise AssertionError(f"mutant {k} of {name}, seed {seed}: {type(error).__name__}: {error}") from error
    assert 0 < pages < number
    path.write_bytes(good)
    assert look_at(run.parent)


@pytest.mark.parametrize("name", [*TEXTS, *ARRAYS])
def test_a_damaged_file_gives_a_page_or_one_clear_error(write, name):
    survive(write, name, 0, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEXTS, *ARRAYS])
def test_ten_thousand_damaged_files_give_a_page_or_one_clear_error(write, name):
    survive(write, name, 1, 1_500)
