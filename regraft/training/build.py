"""From a recipe to the objects that it names. Every name and fit is checked here, before any folder is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from regraft import data as datasets
from regraft.distill import (
    AverageTeacher,
    Distill,
    LabelSmoothing,
    NestedTeacher,
    NetworkTeacher,
    PreviousTeacher,
    StepTeacher,
    VirtualTeacher,
    cross_entropy,
    tet,
)
from regraft.errors import RegraftError, ShapeError, UsageError
from regraft.execution import Calibration, Execution, execute, keep_pages, shipped
from regraft.kernels.processor import fast_bf16
from regraft.models import build
from regraft.names import check_call, lookup
from regraft.neurons import IF, LIF, PLIF
from regraft.neurons.surrogate import SURROGATES
from regraft.structure import PRESETS, Rule, Scope, Topology, preset
from regraft.training.recipe import DistillSettings, Recipe, override

Precision = Literal["fp32", "bf16"]
TEACHER_SEED = 1_000_003  # added to the student's: with the same draw of weights the teacher would be a part of it


def device_of(recipe: Recipe) -> torch.device:
    """The device that the recipe asks for. Raises `UsageError` if there is no such one."""
    wanted = recipe.training.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("training.device is 'cuda', but this torch sees no GPU: use 'cpu' or 'auto'")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(recipe: Recipe) -> Precision:
    """The recipe's precision; in the place of `auto`, what this machine is fast at."""
    wanted = recipe.training.precision
    if wanted != "auto":
        return wanted
    fast = torch.cuda.is_bf16_supported() if device_of(recipe).type == "cuda" else fast_bf16()
    return "bf16" if fast else "fp32"


def calibration_of(recipe: Recipe) -> Calibration:
    """What decides which layers go over their connections. They do so in fp32: who asks for bf16 keeps bf16."""
    return shipped().without("bf16") if recipe.training.precision == "bf16" else shipped()


def arithmetic(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a network computes, in training and evaluation."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def dataset_of(recipe: Recipe) -> datasets.Dataset:
    """The recipe's data, on its device; events in `model.steps` frames."""
    d = recipe.data
    loaded = datasets.load(
        d.name, validation=d.validation, seed=d.split_seed, folder=d.folder, steps=recipe.model.steps, options=d.options
    )
    if d.batch > len(loaded.train):
        raise UsageError(f"data.batch is {d.batch}, but there are {len(loaded.train)} training samples")
    if d.cutout > loaded.form.size:
        raise UsageError(f"data.cutout is {d.cutout}, but samples are {loaded.form.size} pixels wide")
    return loaded.to(device_of(recipe))


def augmentation_of(recipe: Recipe, data: datasets.Dataset) -> datasets.Augmentation | None:
    """How the recipe varies the training samples of this data: as the data set says, and by its own cutout."""
    return replace(data.augmentation, cutout=recipe.data.cutout) if recipe.data.augment else None


def neuron_of(recipe: Recipe) -> Any:
    """A factory of neurons, as the model functions take it."""
    m = recipe.model
    if m.neuron == "relu":
        return nn.ReLU
    surrogate = SURROGATES[m.surrogate](*([] if m.surrogate_shape is None else [m.surrogate_shape]))
    shape: dict[str, Any] = {"threshold": m.threshold, "surrogate": surrogate, "reset": m.reset}
    shape["detach_reset"] = m.detach_reset
    shape |= {} if m.decay_input is None else {"decay_input": m.decay_input}
    if m.neuron == "plif":
        return partial(PLIF, 1 / (1 - m.decay), **shape)
    return partial(IF, **shape) if m.neuron == "if" else partial(LIF, m.decay, **shape)


def model_of(recipe: Recipe, data: datasets.Form) -> nn.Module:
    """The recipe's network for this data, its weights drawn from torch's global generator."""
    settings: dict[str, Any] = {
        "classes": data.classes,
        "channels": data.channels,
        "size": data.size,
        "steps": recipe.model.steps,
        "neuron": neuron_of(recipe),
        "static": data.static,
        **recipe.model.options,
    }
    return build(recipe.model.name, **settings)


def rule_of(recipe: Recipe) -> Rule:
    """The recipe's rule, with the changes that it asks for."""
    t = recipe.topology
    rule = lookup(t.rule, PRESETS, "rule")
    if callable(rule):
        check_call(rule, f"rule {t.rule!r}")
        rule = rule()
    if not isinstance(rule, Rule):
        raise UsageError(
            f"rule {t.rule!r} is {type(rule).__name__}: give a regraft.Rule, or a function that returns one"
        )
    changes = {"zeta": t.zeta, "start_density": t.start_density, "drop": t.drop, "grow": t.grow}
    return preset(rule, **{key: value for key, value in changes.items() if value is not None})


def topology_of(recipe: Recipe, model: nn.Module, steps: int) -> Topology:
    """The recipe's wiring, born on `model`, for a training of `steps` optimiser steps."""
    t = recipe.topology
    return Topology(
        model,
        t.density,
        rule_of(recipe),
        steps=steps,
        every=t.every,
        until=t.until,
        allocation=t.allocation,
        scope=Scope(t.scope or "layer", strict=True) if t.strict else t.scope,
        birth=t.birth,
        include=t.include,
        exclude=t.exclude,
        dense=t.dense,
        seed=recipe.seed,
    )


def optimizer_of(recipe: Recipe, model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimiser, and its learning rate: a linear warm-up, then a cosine to 0."""
    t = recipe.training
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": t.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if t.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=t.lr, momentum=t.momentum, nesterov=t.momentum > 0)
    else:
        optimizer = torch.optim.AdamW(groups, lr=t.lr)
    warm = math.floor(t.warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return optimizer, LambdaLR(optimizer, factor)


def criterion_of(recipe: Recipe, model: nn.Module, topology: Topology, teacher: nn.Module | None) -> Distill:
    """The recipe's loss. `teacher` is the trained network that `sparse`, `undertrained` and `network` ask for."""
    d, t = recipe.distill, recipe.training
    if d.teacher == "previous" and not topology.last_event:
        raise UsageError(
            f"distill.teacher is 'previous', the student before its last rewiring event, but topology.rule "
            f"{recipe.topology.rule!r} never rewires here: name another rule, or another teacher"
        )
    label = partial(tet, regularisation=t.tet) if t.loss == "tet" else cross_entropy
    if d.teacher == "label-smoothing":
        label = LabelSmoothing(d.epsilon)
    makers: dict[str, Any] = {
        "virtual": lambda: VirtualTeacher(d.confidence, d.convention, d.multiplier),
        "previous": lambda: PreviousTeacher(model),
        "average": lambda: AverageTeacher(model, d.decay),
        "weakest-step": lambda: StepTeacher("weakest"),
        "strongest-step": lambda: StepTeacher("strongest"),
        "nested": lambda: NestedTeacher(model, d.keep, lambda: topology.masks),
        **dict.fromkeys(("sparse", "undertrained", "network"), lambda: NetworkTeacher(_given(teacher))),
    }
    if ":" in d.teacher:
        own = lookup(d.teacher, {}, "teacher")
        check_call(own, f"teacher {d.teacher!r}", model)
        makers[d.teacher] = lambda: own(model)
    criterion = Distill(
        makers[d.teacher]() if d.teacher in makers else None,
        weight=d.weight,
        temperature=d.temperature,
        over="mean" if t.loss == "mean" else "step",
        label_loss=label,
        label_weight=d.label_weight,
    )
    topology.before_event(criterion.before_event)
    return criterion


def _given(teacher: nn.Module | None) -> nn.Module:
    if teacher is None:
        raise UsageError("this teacher is a trained network, and none was given")
    return teacher


def teacher_recipe(recipe: Recipe) -> Recipe | None:
    """What stage 1 trains for the teachers `sparse` and `undertrained`; None where no stage 1 is needed."""
    d = recipe.distill
    if d.teacher not in ("sparse", "undertrained"):
        return None
    alone = replace(recipe, name="teacher", seed=recipe.seed + TEACHER_SEED, distill=DistillSettings())
    if d.teacher == "undertrained":
        return override(alone, {"training.stop": d.epochs or max(1, recipe.training.epochs // 10)})
    changes: dict[str, Any] = {"topology.density": d.density}
    changes |= {"model.name": d.model} if d.model else {}
    changes |= {"training.epochs": d.epochs, "training.stop": None} if d.epochs else {}
    return override(alone, changes)


@dataclass
class Parts:
    """Everything a training loop holds."""

    data: datasets.Dataset
    model: nn.Module
    topology: Topology
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    criterion: Distill
    steps: int
    precision: Precision
    execution: Execution


def assemble(recipe: Recipe, teacher: nn.Module | None = None) -> Parts:
    """All parts of a training, seeded by the recipe. Raises `UsageError` for whatever cannot be meant."""
    torch.manual_seed(recipe.seed)
    data = dataset_of(recipe)
    model = model_of(recipe, data.form).to(device_of(recipe))
    keep_pages()
    steps = recipe.training.epochs * datasets.count(data.train, recipe.data.batch)
    topology = topology_of(recipe, model, steps)
    execution = execute(model, topology, calibration_of(recipe))
    optimizer, schedule = optimizer_of(recipe, model, steps)
    topology.attach(optimizer)
    criterion = criterion_of(recipe, model, topology, teacher)
    _rehearse(recipe, data, model, criterion)
    return Parts(data, model, topology, optimizer, schedule, criterion, steps, precision_of(recipe), execution)


def check(recipe: Recipe) -> None:
    """Raise a `RegraftError` for whatever in this recipe, or in its teacher's, cannot be meant; leaves no trace.

    The run that a `network` teacher names may still have to be trained: it is looked at by `fit`.
    """
    first = teacher_recipe(recipe)
    if recipe.distill.teacher != "network":
        assemble(recipe, None if first is None else assemble(first).model)


def _rehearse(recipe: Recipe, data: datasets.Dataset, model: nn.Module, criterion: Distill) -> None:
    """Two samples through network and loss in eval mode: what does not fit shows now, and changes nothing."""
    x, y = next(datasets.plain_batches(data.train, 2))
    name, mode = recipe.model.name, model.training
    with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():
        try:
            logits = model.eval()(x)
        except RuntimeError as error:
            if isinstance(error, RegraftError):
                raise
            raise ShapeError(f"model {name!r} cannot take samples {list(x.shape)}: {error}") from error
        if not isinstance(logits, torch.Tensor):
            raise ShapeError(f"model {name!r} gave {type(logits).__name__}: give logits [N, K] or [T, N, K]")
        if logits.ndim and logits.shape[-1] < data.classes:
            raise ShapeError(
                f"model {name!r} gave logits {list(logits.shape)}, but the labels of {data.name!r} need "
                f"K = {data.classes} classes"
            )
        criterion(logits, y, inputs=x)
    criterion.parts = {}
    model.train(mode)
