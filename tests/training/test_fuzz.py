"""Whatever becomes of a training's files, their readers give what was written or say one clear thing.

The quick sample is a part of what `make proofs` draws (over 10,000 mutants).
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from regraft.errors import Interrupted, RegraftError
from regraft.training.build import assemble
from regraft.training.checkpoint import newest_checkpoint, read_tensors, save_checkpoint, write_tensors
from regraft.training.fit import fit
from regraft.training.load import load
from regraft.training.ranks import Ranks
from regraft.training.recipe import Recipe
from regraft.training.result import trained_teacher
from regraft.training.run import RunFolder, finished, refuse_another
from regraft.training.state import restore, same_threads
from regraft.training.sweep import plan, read_planned, write_plan

RICH = {  # all kinds of state: two moments, a moving teacher, remembered gradients
    "training.optimizer": "adamw",
    "training.lr": 0.01,
    "distill.teacher": "average",
    "topology.grow": "accumulated",
    "topology.drop": "taylor",
}
DEEP = "[" * 200_000 + "]" * 200_000
LIMIT = 60  # seconds for one mutant: more is a hang

# --- mutants ----------------------------------------------------------------------------------------------------------


def spoilt(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """The bytes of a file after something happened to them."""
    kind = draw.choice(["truncate", "flip", "flip", "flip", "extend", "empty", "zeros", "twice", "swap", "garbage"])
    at = draw.randrange(len(data)) if data else 0
    if kind == "truncate":
        return data[:at]
    if kind == "flip" and data:
        found = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
        return bytes(found)
    if kind == "extend":
        return data + draw.randbytes(draw.randrange(1, 100))
    if kind == "zeros":
        return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]
    if kind == "twice":
        return data + data
    if kind == "swap":
        return draw.choice(others)
    return b"" if kind == "empty" else data[:at] + draw.randbytes(16) + data[at + 16 :]


EVIL = [
    *(None, True, False, -1, 0, 1, 3, 2**40, 2**63, 10**30, -(2**70), 0.5, -0.1, 1e308),
    *(float("nan"), float("inf"), "", "x", "1", "\0", "nan", "é", [], {}, [[]], [1], ["x"], {"x": 1}, {"": None}),
    "@deep@",
]


def twisted(tree: Any, draw: random.Random) -> Any:
    """The same JSON with one thing in it changed: a value, a key, the length of a list."""
    tree = json.loads(json.dumps(tree))
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    node, key = draw.choice(places)
    kind = draw.choice(["value", "value", "value", "remove", "rename", "number"])
    if kind == "remove":
        del node[key]
    elif kind == "rename" and isinstance(node, dict):
        node[draw.choice(["x", "", f"{key}x"])] = node.pop(key)
    elif kind == "number" and isinstance(node[key], int | float):
        node[key] += draw.choice([-1, 1, 7, 0.25])
    else:
        node[key] = draw.choice(EVIL)
    return tree


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).replace('"@deep@"', DEEP).encode()


def bent(tensors: dict[str, torch.Tensor], draw: random.Random) -> dict[str, torch.Tensor]:
    """Well-formed tensors of which one or two are not what they should be."""
    found = dict(tensors)
    for _ in range(draw.choice([1, 1, 2])):
        name, tensor = draw.choice([*found.items()])
        other = draw.choice([*found.values()])
        kind = draw.choice(["remove", "rename", "shape", "dtype", "fill", "other", "add", "scalar"])
        if kind == "remove" and len(found) > 1:
            del found[name]
        elif kind == "rename":
            kept = found.pop(name)
            found[draw.choice(["", "x", f"{name}x", name.partition("/")[0], f"optimizer/99/{name}", name[:-1]])] = kept
        elif kind == "shape":
            found[name] = draw.choice([tensor[None], tensor.flatten()[:-1], tensor.flatten(), torch.zeros(0)])
        elif kind == "dtype":
            kinds = [torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.complex64]
            found[name] = tensor.to(draw.choice(kinds))
        elif kind == "fill":
            value = draw.choice([float("nan"), float("inf"), -1.0, 1e30]) if tensor.is_floating_point() else 1
            found[name] = torch.full_like(tensor, value)
        elif kind == "scalar":
            found[name] = torch.tensor(draw.choice([-1.0, float("nan"), 3.0]))
        elif kind == "other":
            found[name] = other
        else:
            found[draw.choice(["model/x", "optimizer/x/y", "masks/x", "average/x", "rank0/x", "rank7/random"])] = tensor
    return found


# --- what is read -----------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """A stopped run (with two checkpoints), a finished one and a sweep's plan; `reset` makes them whole again."""

    path: Path
    recipe: Recipe

    def __post_init__(self) -> None:
        self.stopped, self.ended, self.sweep = (self.path / name for name in ("stopped", "ended", "sweep"))
        self.whole = self.contents()
        self.checkpoints = [read_tensors(path) for path in sorted(self.stopped.glob("checkpoints/*.safetensors"))]

    def contents(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.path.rglob("*") if path.is_file()}

    def reset(self) -> None:
        for path in list(self.path.rglob("*")):
            if path not in self.whole and path.exists() and not any(path in kept.parents for kept in self.whole):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path, data in self.whole.items():
            if path.is_dir():
                shutil.rmtree(path)
            path.parent.mkdir(exist_ok=True)
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)

    def spoil(self, path: Path, draw: random.Random) -> None:
        """Something happens to a file that has nothing to do with what is in it."""
        if draw.random() < 0.03:
            path.unlink()
            if draw.random() < 0.5:
                path.mkdir()
            return
        path.write_bytes(spoilt(self.whole[path], draw, [*self.whole.values()]))

    def twist(self, path: Path, draw: random.Random) -> None:
        path.write_bytes(as_json(twisted(json.loads(self.whole[path]), draw)))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny) -> Place:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("fuzz")
    recipe = tiny(RICH)
    left = [4]

    def stop(record: dict[str, Any]) -> None:
        left[0] -= 1
        if not left[0]:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(recipe, path / "stopped", watch=stop, save_every=0)
    fit(tiny({"training.epochs": 1}), path / "ended")
    (path / "plain.yaml").write_text(yaml.safe_dump({"data": {"name": "standin"}}))
    write_plan(plan(path / "plain.yaml", {"topology.density": [0.1, 0.2]}, [0, 1]), path / "sweep", "regraft sweep")
    return Place(path, recipe)


def checkpoint(place: Place, draw: random.Random) -> None:
    """Both pairs, by accident: what comes out is one of them as it was written."""
    pairs = sorted(place.stopped.glob("checkpoints/*"))
    for path in draw.sample(pairs, draw.choice([1, 2, 4])):
        (place.twist if path.suffix == ".json" and draw.random() < 0.3 else place.spoil)(path, draw)
    found = newest_checkpoint(place.stopped)
    assert found is not None
    tensors, manifest = found
    assert any(
        tensors.keys() == t.keys()
        and all(tensors[k].equal(t[k]) for k in t)
        and all(str(manifest.get(k)) == str(v) for k, v in m.items() if k != "digest")
        for t, m in place.checkpoints
    ), "a damaged checkpoint was taken for a whole one"


def state(place: Place, draw: random.Random) -> None:
    """A checkpoint that is whole, and wrong: what is accepted can be trained on."""
    tensors, manifest = place.checkpoints[-1]
    threads = torch.get_num_threads()
    try:
        if draw.random() < 0.5:
            manifest = json.loads(as_json(twisted(manifest, draw)).replace(DEEP.encode(), b"[" * 300 + b"]" * 300))
        else:
            tensors = bent(tensors, draw)
        same_threads(manifest)
        parts = assemble(place.recipe)
        at, _ = restore(parts, tensors, manifest, Ranks())
        x, y = next(iter([(parts.data.train.x[:4].float(), parts.data.train.y[:4])]))
        loss = parts.criterion(parts.model.train()(x), y, inputs=x)
        loss.backward()
        parts.optimizer.step()
        parts.schedule.step()
        parts.criterion.update(parts.model, at.step + 1)
        json.dumps(parts.schedule.state_dict())
        assert sum(event.seconds for event in parts.topology.events) >= -1
    finally:
        torch.set_num_threads(threads)


def resumed(place: Place, draw: random.Random) -> None:
    """The same through `fit`, from files whose sums are right."""
    tensors, manifest = place.checkpoints[-1]
    manifest = {key: value for key, value in manifest.items() if key not in ("format", "sha256", "digest", "before")}
    if draw.random() < 0.5:
        manifest = json.loads(as_json(twisted(manifest, draw)).replace(DEEP.encode(), b"[" * 300 + b"]" * 300))
    else:
        tensors = bent(tensors, draw)
    threads = torch.get_num_threads()
    shutil.rmtree(place.stopped / "checkpoints")
    save_checkpoint(place.stopped, 99, tensors, manifest)
    try:
        with unchanged(place, but=lambda: not (place.stopped / "result.json").exists() and grown(place)):
            fit(place.recipe, place.stopped, resume=True)
    finally:
        torch.set_num_threads(threads)


def grown(place: Place) -> bool:
    """Whether the run had begun to train again, for then it may change what is there."""
    described = json.loads((place.stopped / "environment.json").read_text())
    return bool(described.get("resumed"))


def folder(place: Place, draw: random.Random) -> None:
    """Log, wiring and environment: what is gone on with is the log as it was."""
    name = draw.choice(["log.jsonl", "wiring.safetensors", "environment.json"])
    (place.twist if name.startswith("env") and draw.random() < 0.5 else place.spoil)(place.stopped / name, draw)
    at = place.checkpoints[-1][1]["position"]
    run = RunFolder(place.stopped)
    with unchanged(place):
        run.go_on(at["step"], at["log_bytes"], at["log_sha256"])
    log = place.stopped / "log.jsonl"
    assert log.read_bytes() == place.whole[log][: at["log_bytes"]]
    run.write_maps()


def recipe_file(place: Place, draw: random.Random) -> None:
    path = place.stopped / "recipe.yaml"
    text = place.whole[path].decode()
    if draw.random() < 0.5:
        place.spoil(path, draw)
    elif draw.random() < 0.5:
        path.write_text(yaml.safe_dump(twisted(yaml.safe_load(text), draw)))
    else:
        line = draw.choice([line for line in text.splitlines() if ": " in line])
        tag = draw.choice(["!!timestamp x", "!!int ''", "!!float ''", "!!bool x", "&a [*a]", "!!python/none", "1:60"])
        path.write_text(text.replace(line, f"{line.partition(':')[0]}: {tag}"))
    with unchanged(place):
        refuse_another(place.stopped, place.recipe)


def result(place: Place, draw: random.Random) -> None:
    path = place.ended / "result.json"
    (place.twist if draw.random() < 0.5 else place.spoil)(path, draw)
    reader = draw.choice([partial(finished, recipe=place.recipe), trained_teacher])
    with unchanged(place):
        reader(place.ended)


def network(place: Place, draw: random.Random) -> None:
    """`last` and its recipe, by accident, and with sums that are right."""
    which = draw.choice(["last", "best"])
    path = place.ended / f"{which}.safetensors"
    if draw.random() < 0.5:
        place.spoil(draw.choice([path, path.with_suffix(".json"), place.ended / "recipe.yaml"]), draw)
    else:
        tensors, manifest = read_tensors(path)
        for key in ("format", "sha256", "digest", "before"):
            manifest.pop(key, None)
        if draw.random() < 0.5:
            manifest = json.loads(as_json(twisted(manifest, draw)).replace(DEEP.encode(), b"[" * 300 + b"]" * 300))
        else:
            tensors = bent(tensors, draw)
        path.with_suffix(".json").unlink()
        write_tensors(path, tensors, manifest)
    with unchanged(place):
        load(place.ended, which)


def planned(place: Place, draw: random.Random) -> None:
    path = place.sweep / "sweep.json"
    wanted = draw.choice([entry["path"] for entry in json.loads(place.whole[path])["runs"]])
    (place.twist if draw.random() < 0.7 else place.spoil)(path, draw)
    with unchanged(place):
        run, _ = read_planned(place.sweep, wanted)
        assert run.teacher is None or place.sweep / run.teacher


READERS = (checkpoint, state, folder, recipe_file, result, network, planned)


@contextlib.contextmanager
def unchanged(place: Place, but: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """A reader that refuses has changed no file."""
    before = place.contents()
    try:
        yield
    except RegraftError:
        lock = place.stopped / ".lock"
        after = {path: data for path, data in place.contents().items() if path != lock}
        assert but() or after == {path: data for path, data in before.items() if path != lock}
        raise


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError(f"no answer in {LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(place: Place, reader: Callable[[Place, random.Random], None], seeds: range) -> None:
    refused = 0
    for seed in seeds:
        place.reset()
        try:
            with no_hang(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(place, random.Random(f"{reader.__name__} {seed}"))
        except RegraftError as error:
            refused += bool(str(error).strip())
        except BaseException as error:
            error.add_note(f"mutant {seed} of {reader.__name__}")
            raise
    place.reset()
    assert refused > len(seeds) / 5, "mutants that nobody notices are no test"


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_sample_of_damages(place, reader):
    fuzz(place, reader, range(25))


def test_a_sample_of_damaged_resumes(place):
    fuzz(place, resumed, range(4))


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_1500_damages_each(place, reader):
    fuzz(place, reader, range(1500))


@pytest.mark.slow
def test_150_damaged_resumes(place):
    fuzz(place, resumed, range(150))
