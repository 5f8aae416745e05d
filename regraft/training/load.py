"""Saved networks: model and wiring in one file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from regraft.data import Form
from regraft.errors import RegraftError, RunError, UsageError
from regraft.structure import Topology
from regraft.training.build import Precision, model_of, topology_of
from regraft.training.checkpoint import read_tensors, write_tensors
from regraft.training.recipe import Recipe, load_recipe

WIRING = ("masks", "young", "ever", "saliency", "average")


@dataclass(frozen=True)
class Loaded:
    """A trained network as it was saved: `model` in eval mode on the CPU, its `topology` and its `recipe`, and the
    precision that it was trained in."""

    model: nn.Module
    topology: Topology
    recipe: Recipe
    precision: Precision


def save(path: Path, model: nn.Module, topology: Topology, manifest: Mapping[str, Any]) -> None:
    """Write `path` (safetensors: `model/<name>`, `masks/<name>`, ...) and its JSON manifest."""
    tensors, rest = network_state(model, topology)
    write_tensors(path, tensors, {**manifest, **rest})


def network_state(model: nn.Module, topology: Topology) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and wiring as flat tensors, and the rest of the wiring as plain values."""
    state = topology.state_dict()
    tensors = {f"model/{name}": t for name, t in model.state_dict().items()}
    for kind in WIRING:
        tensors |= {f"{kind}/{name}": t for name, t in state[kind].items()}
    return tensors, {"topology": {key: value for key, value in state.items() if key not in WIRING}}


def load(run: str | Path, which: Literal["last", "best"] = "last") -> Loaded:
    """The network of a run folder: as it was at the end, or at the epoch chosen on the validation split.

    Raises `RunError` if the folder or a file in it is missing, damaged, or does not fit its recipe.
    """
    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is no run folder: it has no recipe.yaml")
    try:
        recipe = load_recipe(folder / "recipe.yaml")
    except UsageError as error:
        raise RunError(f"{folder / 'recipe.yaml'} is damaged: {error}") from None
    tensors, manifest = read_tensors(folder / f"{which}.safetensors")
    if manifest.get("recipe_hash") != recipe.hash:
        raise RunError(f"{folder / f'{which}.safetensors'} was saved by another recipe than {folder / 'recipe.yaml'}")
    state: dict[str, Any] = {kind: {} for kind in ("model", *WIRING)}
    with torch.random.fork_rng(devices=[]):
        try:
            model = model_of(recipe, Form(**manifest["data"]))
        except RegraftError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
            what = f"it does not say what the data were like ({type(error).__name__}: {error})"
            raise RunError(f"{folder / f'{which}.json'} is damaged: {what}") from None
    try:
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            state[kind][name] = tensor
        topology = topology_of(recipe, model, int(manifest["steps"]))
        model.load_state_dict(state.pop("model"))
        topology.load_state_dict({**manifest["topology"], **state})
    except (RegraftError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{folder}: the saved network does not fit its recipe ({error})") from None
    precision = manifest.get("precision", recipe.training.precision)
    if precision not in get_args(Precision):
        raise RunError(f"{folder / f'{which}.json'} is damaged: precision {precision!r}")
    return Loaded(model.eval(), topology, recipe, precision)
