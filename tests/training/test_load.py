"""What is loaded computes what was measured, to the bit; anything else is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load as parse
from safetensors.torch import save

from regraft.data import plain_batches
from regraft.errors import RunError
from regraft.training.checkpoint import digest
from regraft.training.evaluate import evaluate
from regraft.training.load import load
from regraft.training.recipe import load_recipe


def test_the_loaded_network_is_the_one_that_was_measured(trained):
    loaded = load(trained.folder)
    assert not any(module.training for module in loaded.model.modules())
    assert {p.device.type for p in loaded.model.parameters()} == {"cpu"}
    assert loaded.recipe == trained.recipe
    model = trained.parts.model.eval()
    for x, _ in plain_batches(trained.parts.data.test, 256):  # the batches that it was measured on
        with torch.no_grad():
            assert torch.equal(loaded.model(x), model(x))
    theirs, ours = model.state_dict(), loaded.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_the_wiring_comes_back_with_its_history(trained):
    ours, loaded = trained.parts.topology, load(trained.folder).topology
    assert loaded.model is not trained.parts.model
    assert loaded.masks.keys() == ours.masks.keys()
    assert all(torch.equal(loaded.masks[name], ours.masks[name]) for name in ours.masks)
    assert loaded.events == ours.events
    assert (loaded.step, loaded.exploration, loaded.mask_hash) == (9, ours.exploration, ours.mask_hash)
    weights = dict(loaded.model.named_parameters())
    assert not any(weights[name][~mask].any() for name, mask in loaded.masks.items())


def test_best_is_the_network_of_the_chosen_epoch(trained):
    chosen = trained.result["accuracy"]["selected_epoch"]
    found = evaluate(load(trained.folder, "best").model, plain_batches(trained.parts.data.valid, 256))
    logged = trained.records("epoch")[chosen - 1]["valid"]
    assert (found.loss, found.accuracy) == (logged["loss"], logged["accuracy"])


def test_another_process_computes_the_same_bits(trained):
    """Nothing downstream needs the process that made the run."""
    code = (
        "import sys, hashlib, torch, regraft, regraft.data as d; torch.set_num_threads(1); "
        "m = regraft.load(sys.argv[1]).model; x = d.load('standin').test.x; "
        "print(hashlib.sha256(m(x).detach().numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(trained.folder)], capture_output=True, text=True, timeout=100, check=True
    )
    with torch.no_grad():
        ours = trained.parts.model.eval()(trained.parts.data.test.x)
    assert done.stdout.strip() == hashlib.sha256(ours.numpy().tobytes()).hexdigest()


def test_loading_draws_nothing_and_writes_nothing(trained):
    files = {path.name: path.read_bytes() for path in trained.folder.iterdir()}
    random = torch.get_rng_state()
    load(trained.folder)
    assert torch.equal(torch.get_rng_state(), random)
    assert {path.name: path.read_bytes() for path in trained.folder.iterdir()} == files


def test_a_folder_may_move(copied, trained, monkeypatch):
    monkeypatch.chdir(copied.parent)
    assert load("copy").topology.mask_hash == trained.result["mask_hash"]


# --- damage -----------------------------------------------------------------------------------------------------------


def rewrite(folder, change):
    """Change the tensors and give the file a manifest that is right again."""
    path = folder / "last.safetensors"
    path.write_bytes(save(change(parse(path.read_bytes()))))
    edit(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


def edit(folder, **changes):
    path = folder / "last.json"
    manifest = {**json.loads(path.read_text()), **changes}
    manifest = {key: value for key, value in manifest.items() if value is not ...}
    path.write_text(json.dumps({**manifest, "digest": digest(manifest)}))


def recipe(folder, section, **changes):
    path = folder / "recipe.yaml"
    tree = yaml.safe_load(path.read_text())
    (tree[section] if section else tree).update(changes)
    path.write_text(yaml.safe_dump(tree))


def flip(folder):
    path = folder / "last.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(folder):
    path = folder / "last.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


DAMAGES = {
    "a bit flipped": (flip, "sha256"),
    "truncated": (truncate, "sha256"),
    "missing": (lambda f: (f / "last.safetensors").unlink(), "cannot read"),
    "manifest missing": (lambda f: (f / "last.json").unlink(), "cannot read"),
    "manifest cut": (lambda f: (f / "last.json").write_text('{"form'), "not JSON"),
    "another format": (lambda f: edit(f, format=2), "format 2"),
    "no step count": (lambda f: edit(f, steps=...), "does not fit"),
    "a step count that is none": (lambda f: edit(f, steps="many"), "does not fit"),
    "no form of the data": (lambda f: edit(f, data=...), "damaged"),
    "a form of something else": (lambda f: edit(f, data={"pages": 3}), "damaged"),
    "another form of data": (
        lambda f: edit(f, data={"classes": 9, "channels": 1, "size": 8, "static": True}),
        "not fit",
    ),
    "no wiring": (lambda f: edit(f, topology=...), "does not fit"),
    "another wiring": (lambda f: edit(f, topology=[]), "does not fit"),
    "wiring of other settings": (lambda f: edit(f, steps=20), "does not fit"),
    "another recipe": (lambda f: recipe(f, "training", lr=0.06), "another recipe"),
    "another seed": (lambda f: recipe(f, None, seed=1), "another recipe"),
    "no recipe": (lambda f: (f / "recipe.yaml").unlink(), "no recipe.yaml"),
    "recipe cut": (lambda f: (f / "recipe.yaml").write_text("model: {"), "recipe.yaml is damaged"),
    "recipe of a later version": (lambda f: recipe(f, "training", later=1), "recipe.yaml is damaged"),
    "a weight less": (lambda f: rewrite(f, lambda t: without(t, "model/features.0.weight")), "does not fit"),
    "a mask less": (lambda f: rewrite(f, lambda t: without(t, "masks/features.0.weight")), "does not fit"),
    "a history less": (lambda f: rewrite(f, lambda t: without(t, "ever/features.0.weight")), "does not fit"),
    "a strange tensor": (lambda f: rewrite(f, lambda t: {**t, "else/x": torch.ones(1)}), "does not fit"),
    "another shape": (
        lambda f: rewrite(f, lambda t: {**t, "model/classifier.2.bias": torch.ones(11)}),
        "does not fit",
    ),
    "a mask of another shape": (
        lambda f: rewrite(f, lambda t: {**t, "masks/classifier.2.weight": torch.ones(3, 3).bool()}),
        "does not fit",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_one_clear_error(copied, damage):
    harm, message = DAMAGES[damage]
    harm(copied)
    with pytest.raises(RunError, match=message):
        load(copied)
    if "recipe" not in damage and damage != "another seed":
        assert load(copied, "best").recipe.name == "tiny", "the other network is as good as it was"


def test_a_folder_without_a_run_is_told(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing", tmp_path / "a\0b"):
        with pytest.raises(RunError, match="no run folder"):
            load(folder)


def test_a_run_from_a_gpu_loads_without_one(copied, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe(copied, "training", device="cuda")
    edit(copied, recipe_hash=load_recipe(copied / "recipe.yaml").hash)
    assert load(copied).recipe.training.device == "cuda"


def test_a_run_loads_without_its_data(copied):
    """A network can be looked at, or taken elsewhere, where its data are not."""
    recipe(copied, "data", name="gone_module:data")
    edit(copied, recipe_hash=load_recipe(copied / "recipe.yaml").hash)
    assert load(copied).model(torch.zeros(2, 1, 8, 8)).shape == (2, 2, 10)
