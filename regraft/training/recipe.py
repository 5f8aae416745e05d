"""What is to be trained, as frozen dataclasses: the same in Python, in a YAML file and as flags.

No torch here: the command line's `--help` reads this file only. Types and ranges are checked where a value is set;
names of models, data sets and rules, and whether all fits, by `build.check`, before any folder is made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from regraft.errors import UsageError, nearest
from regraft.training.source import SHIPPED, dump_yaml, read_yaml
from regraft.training.values import hints, settle, typed, within

__all__ = ["SHIPPED", "Recipe", "load_recipe", "override", "read_yaml", "to_mapping", "write_yaml"]

TEACHERS = {
    "none": "plain training",
    "label-smoothing": "the control arm: no teacher, smoothed labels",
    "sparse": "a network sparser than the student, trained first by the same command",
    "virtual": "no network: a hand-made distribution (Tf-KD, Yuan et al. 2020)",
    "undertrained": "an early checkpoint of the same recipe",
    "previous": "the student just before its last rewiring event",
    "average": "an exponential moving average of the student",
    "weakest-step": "the student's least confident time step teaches the others",
    "strongest-step": "the most confident one, for contrast",
    "nested": "the student's own strongest connections, and back",
    "network": "any finished run: distill.run",
}


@dataclass(frozen=True)
class DataSettings:
    """What the network sees."""

    name: str = "digits"
    """A data set (`regraft list data`) or `package.module:function`."""
    batch: int = 64
    """Samples in one optimiser step."""
    validation: float = 0.2
    """Share of the training set that is held out to choose an epoch. The test set chooses nothing."""
    split_seed: int = 0
    """Seed of that split, the same for all seeds of a comparison."""
    augment: bool = True
    """Vary the training samples as the data set says."""
    cutout: int = 0
    """Side of a square that is blanked in each training sample, in pixels; 0 for none."""
    folder: str | None = None
    """Where data sets lie; the environment variable REGRAFT_DATA, or `data`, if not given."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the data function; one as a flag: `--data.options.by count`."""

    def __post_init__(self) -> None:
        settle(self, "data")
        within("data", "batch", self.batch, 1, math.inf)
        within("data", "validation", self.validation, 0, 0.9)
        within("data", "split_seed", self.split_seed, 0, 2**63 - 1)
        within("data", "cutout", self.cutout, 0, 2**15)
        if self.cutout and not self.augment:
            raise UsageError(f"data.cutout is {self.cutout}, but data.augment is off: leave one of them out")
        try:  # as in `ModelSettings`
            object.__setattr__(self, "options", json.loads(json.dumps(self.options)))
        except (TypeError, ValueError) as error:
            raise UsageError(f"data.options: {error}; give numbers, texts, lists and mappings of them") from None


@dataclass(frozen=True)
class ModelSettings:
    """What fires."""

    name: str = "tiny_vgg"
    """A model (`regraft list models`) or `package.module:function`."""
    steps: int = 4
    """Time steps T."""
    neuron: Literal["lif", "plif", "if", "relu"] = "lif"
    """Neuron; `relu` is the ANN twin."""
    decay: float = 0.5
    """Share of the membrane kept from step to step (LIF; the start for PLIF)."""
    threshold: float = 1.0
    """Membrane at which a neuron fires."""
    surrogate: Literal["triangle", "rectangle", "atan", "sigmoid"] = "triangle"
    """What stands in for the derivative of the spike."""
    surrogate_shape: float | None = None
    """Its width (triangle, rectangle) or sharpness (atan, sigmoid); its own default if not given."""
    reset: Literal["hard", "soft"] = "hard"
    """To 0, or by subtraction of the threshold."""
    detach_reset: bool = True
    """No gradient through the reset."""
    decay_input: bool | None = None
    """Charge with (1 - decay) times the input; the neuron's own default if not given (PLIF does, LIF does not)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the model function; one as a flag: `--model.options.hidden 64`."""

    def __post_init__(self) -> None:
        settle(self, "model")
        within("model", "steps", self.steps, 1, 1024)
        within("model", "decay", self.decay, 0, 1, open_low=True)
        if self.neuron == "plif" and self.decay == 1:
            raise UsageError("model.decay is 1: a PLIF neuron starts below 1 (tau = 1/(1 - decay)); use neuron 'if'")
        if self.neuron == "if" and self.decay_input:
            raise UsageError("model.decay_input: an IF neuron keeps everything, so it has no input gain; use 'lif'")
        within("model", "threshold", self.threshold, 0, math.inf, open_low=True)
        within("model", "surrogate_shape", self.surrogate_shape, 0, math.inf, open_low=True)
        try:  # the model function shall get now what it gets when the run is loaded
            object.__setattr__(self, "options", json.loads(json.dumps(self.options)))
        except (TypeError, ValueError) as error:
            raise UsageError(f"model.options: {error}; give numbers, texts, lists and mappings of them") from None


@dataclass(frozen=True)
class TopologySettings:
    """How the wiring is born and evolves."""

    density: float = 0.1
    """Connections that exist over all prunable elements; the final one where a rule lets it fall."""
    rule: str = "rigl"
    """A preset (`regraft list rules`) or `package.module:function`."""
    every: int = 100
    """Optimiser steps from one rewiring event to the next."""
    until: float = 0.75
    """Share of the training after which the wiring stays as it is."""
    zeta: float | None = None
    """Share of the connections exchanged at the first event; the rule's own if not given."""
    start_density: float | None = None
    """Where a falling density begins; the rule's own if not given."""
    drop: Literal["magnitude", "signed", "taylor"] | None = None
    """What goes at an event; the rule's own if not given."""
    grow: Literal["random", "gradient", "accumulated", "momentum"] | None = None
    """What comes; the rule's own if not given."""
    allocation: Literal["uniform", "er", "erk", "global"] | None = None
    """How connections are spread over layers at birth; the rule's own if not given."""
    scope: Literal["layer", "row", "network"] | None = None
    """Within what counts are held; the rule's own if not given."""
    strict: bool = False
    """Scope `row`: all rows of a layer equal, at the nearest density."""
    birth: Literal["rescale", "keep"] = "rescale"
    """Random and rescaled, or the largest weights untouched."""
    include: tuple[str, ...] = ()
    """Name patterns of further tensors to prune."""
    exclude: tuple[str, ...] = ()
    """Name patterns of tensors to leave alone."""
    dense: tuple[str, ...] = ()
    """Name patterns of tensors that keep all connections, and are counted."""

    def __post_init__(self) -> None:
        settle(self, "topology")
        within("topology", "density", self.density, 0, 1, open_low=True)
        within("topology", "every", self.every, 1, math.inf)
        within("topology", "until", self.until, 0, 1, open_low=True)
        within("topology", "zeta", self.zeta, 0, 1)
        within("topology", "start_density", self.start_density, 0, 1, open_low=True)


@dataclass(frozen=True)
class DistillSettings:
    """Who teaches, and how much it counts."""

    teacher: str = "none"
    """A teacher (`regraft list teachers`), or `package.module:function` that makes one from the student."""
    weight: float = 0.5
    """Share of the teacher in the loss; the label's is 1 - weight."""
    temperature: float = 4.0
    """Softens both sides of the divergence."""
    label_weight: float | None = None
    """The label's weight, where it is not 1 - weight (1 for a whole cross-entropy beside the teacher)."""
    density: float = 0.02
    """Sparse teacher: its density, below the student's."""
    model: str | None = None
    """Sparse teacher: another model than the student's."""
    epochs: int | None = None
    """Sparse teacher: its epochs (as the student's if not given). Undertrained: where it stops (a tenth of them)."""
    run: str | None = None
    """Network teacher: the folder of a finished run."""
    confidence: float = 0.99
    """Virtual teacher: probability of the right class."""
    convention: Literal["softened", "paper", "released"] = "softened"
    """Virtual teacher: see `docs/distillation.md` for what each really does."""
    multiplier: float | None = None
    """Virtual teacher, convention `released`: factor of the loss (number of classes if not given)."""
    decay: float = 0.999
    """Average teacher: share of the old average kept at each step."""
    keep: float = 0.5
    """Nested teacher: share of the student's connections."""
    epsilon: float = 0.1
    """Label smoothing (the control arm): mass spread over all classes."""

    def __post_init__(self) -> None:
        settle(self, "distill")
        within("distill", "weight", self.weight, 0, 1)
        within("distill", "label_weight", self.label_weight, 0, math.inf)
        within("distill", "temperature", self.temperature, 0, math.inf, open_low=True)
        within("distill", "density", self.density, 0, 1, open_low=True)
        within("distill", "epochs", self.epochs, 1, math.inf)
        within("distill", "confidence", self.confidence, 0, 1, open_low=True)
        within("distill", "multiplier", self.multiplier, 0, math.inf, open_low=True)
        within("distill", "decay", self.decay, 0, 1)
        within("distill", "keep", self.keep, 0, 1, open_low=True)
        within("distill", "epsilon", self.epsilon, 0, 1)
        if self.teacher not in TEACHERS and ":" not in self.teacher:
            raise UsageError(
                f"no teacher is called {self.teacher!r}: {nearest(self.teacher, TEACHERS)}, or package.module:function"
            )
        if self.teacher == "network" and not self.run:
            raise UsageError("distill.teacher is 'network': give the folder of its finished run as distill.run")


@dataclass(frozen=True)
class TrainingSettings:
    """How the weights learn."""

    epochs: int = 30
    """Passes over the training set."""
    stop: int | None = None
    """End after this epoch, on the schedule of all of them."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum (Nesterov), or AdamW."""
    lr: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """SGD only."""
    weight_decay: float = 5e-4
    """On tensors with two or more axes; never on biases, normalisation or learnt time constants."""
    warmup: float = 0.05
    """Share of the training in which the learning rate rises; a cosine to 0 follows."""
    loss: Literal["mean", "step", "tet"] = "mean"
    """Losses (the teacher's too) act on the mean logits or on each step; TET is Deng et al. 2022."""
    tet: float = 1e-3
    """TET: weight of the regularising term (the published code's)."""
    clip: float | None = None
    """Largest norm of the masked gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of forward and backward; weights are fp32. `auto`: bf16 where the processor or GPU is fast at it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""

    def __post_init__(self) -> None:
        settle(self, "training")
        within("training", "epochs", self.epochs, 1, math.inf)
        within("training", "stop", self.stop, 1, self.epochs)
        within("training", "lr", self.lr, 0, math.inf, open_low=True)
        within("training", "momentum", self.momentum, 0, 1)
        within("training", "weight_decay", self.weight_decay, 0, math.inf)
        within("training", "warmup", self.warmup, 0, 1)
        within("training", "tet", self.tet, 0, 1)
        within("training", "clip", self.clip, 0, math.inf, open_low=True)


@dataclass(frozen=True)
class Recipe:
    """One training, from data to run folder."""

    name: str = "run"
    """Name of the run, and of its folder."""
    seed: int = 0
    """Of weights, wiring, order and augmentation."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    topology: TopologySettings = field(default_factory=TopologySettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        settle(self, "")
        within("recipe", "seed", self.seed, 0, 2**63 - 1)
        if not self.name or any(c in self.name for c in "/\\\0") or self.name.startswith("."):
            raise UsageError(f"name is {self.name!r}: it names a folder, so give a word without slashes")
        if self.distill.teacher == "sparse" and self.distill.density >= self.topology.density:
            raise UsageError(
                f"distill.density is {self.distill.density:g}: the sparse teacher must be sparser than the student, "
                f"whose topology.density is {self.topology.density:g}"
            )
        if self.distill.teacher == "undertrained" and (self.distill.epochs or 1) > self.training.epochs:
            raise UsageError(
                f"distill.epochs is {self.distill.epochs}: the undertrained teacher stops early, "
                f"so give at most training.epochs, {self.training.epochs}"
            )
        if self.distill.teacher == "label-smoothing" and self.training.loss == "tet":
            raise UsageError(
                "distill.teacher is 'label-smoothing': it takes TET's place, so give training.loss mean or step"
            )
        if self.distill.teacher in ("weakest-step", "strongest-step") and self.model.steps < 2:
            raise UsageError(
                f"distill.teacher is {self.distill.teacher!r}: it compares time steps, so model.steps >= 2"
            )

    @property
    def hash(self) -> str:
        """12 hex digits over all settings that are not at their default, but the name and where the data lie.

        So a setting that a later version adds does not change the hash of the recipes from before. A default that
        has changed counts as it first was.
        """
        first = Recipe(training=TrainingSettings(precision="fp32"))
        settings = {k: v for k, v in differences(first, self).items() if k not in ("name", "data.folder")}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Any, new: Any, path: str = "") -> dict[str, Any]:
    """The settings of `new` that are not those of `old`, by dotted name."""
    found: dict[str, Any] = {}
    for f in fields(old):
        before, after = getattr(old, f.name), getattr(new, f.name)
        if is_dataclass(before):
            found |= differences(before, after, f"{path}{f.name}.")
        elif before != after:
            found[f"{path}{f.name}"] = after
    return found


def to_mapping(recipe: Any) -> dict[str, Any]:
    """The recipe as plain dicts and lists, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def override(recipe: Recipe, changes: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A copy with some settings changed: nested mappings, or dotted names (`{"training.epochs": 3}`).

    What a mapping does not name stays, in `model.options` too.

    Raises `UsageError` for an unknown name (with the nearest one), a wrong type, or a value out of range.
    """
    return _apply(recipe, _nested(changes), where, "")


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        head, _, rest = str(key).partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping) and isinstance(tree.get(head), dict):
            value = {**tree[head], **value}
        tree[head] = value
    return tree


def _apply(old: Any, changes: Mapping[str, Any], where: str, path: str) -> Any:
    known = {f.name: f for f in fields(old)}
    types = hints(type(old))
    new: dict[str, Any] = {}
    for key, value in changes.items():
        name = f"{path}{key}"
        if key not in known:
            raise UsageError(f"{where}: no setting is called {name!r}: {nearest(str(key), known)}")
        current = getattr(old, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}: {name} is a section: give it settings, not {value!r}")
            new[key] = _apply(current, _nested(value), where, f"{name}.")
        else:
            merged = {**current, **value} if isinstance(current, dict) and isinstance(value, Mapping) else value
            new[key] = typed(merged, types[key], where, name)
    return dataclasses.replace(old, **new)


def write_yaml(recipe: Recipe, path: Path) -> None:
    """The resolved recipe as a file that `regraft train` takes."""
    path.write_text(dump_yaml(to_mapping(recipe)), encoding="utf-8")


def load_recipe(source: str | Path) -> Recipe:
    """The recipe in a file, or the shipped one of that name; its arms, if any, are left out (see `load_study`)."""
    tree = read_yaml(source)
    tree.pop("arms", None)
    return override(Recipe(), tree, where=str(source))
