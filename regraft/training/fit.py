"""`fit`: one training, from a recipe to a run folder. The loop reads from top to bottom; there are no hidden events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from regraft.data import plain_batches, training_batches
from regraft.distill import over_time
from regraft.errors import TrainingError
from regraft.training.build import Parts, assemble, check, device_of, teacher_recipe
from regraft.training.evaluate import Evaluation, evaluate, reestimate, warn_of_silence
from regraft.training.load import load, save
from regraft.training.recipe import Recipe
from regraft.training.result import finish, trained_teacher
from regraft.training.run import RunFolder, finished, refuse_finished

Watch = Callable[[dict[str, Any]], None]
REESTIMATE = 50  # batches at most


def fit(
    recipe: Recipe,
    folder: str | Path | None = None,
    *,
    teacher_run: str | Path | None = None,
    watch: Watch = lambda record: None,
    command: str | None = None,
) -> dict[str, Any]:
    """Train what the recipe says and write everything to `folder` (`runs/<name>` unless given).

    Where the recipe asks for a `sparse` or `undertrained` teacher, that one is trained first, into `folder/teacher`,
    unless it is finished there already or `teacher_run` names its run.

    Args:
        watch: is called with each record of the log as it is written.
        command: what to print as the way to reproduce this run.

    Returns:
        The content of `result.json`.

    Raises:
        UsageError, ShapeError, StructureError: whatever cannot be meant or does not fit, before the folder is made.
        RunError: the folder holds a finished run, or cannot be written.
        TrainingError: the loss is not finite; what was saved stays.
    """
    folder = Path(folder or Path("runs") / recipe.name)
    refuse_finished(folder)
    parts, teacher_run = _with_teacher(recipe, folder, teacher_run, watch)
    run = RunFolder.begin(folder, recipe)
    model, topology, criterion, data = parts.model, parts.topology, parts.criterion, parts.data
    optimizer, settings = parts.optimizer, recipe.training
    device = device_of(recipe)
    bf16 = settings.precision == "bf16"
    clock = _Clock()

    def log(record: dict[str, Any]) -> None:
        run.log(record)
        watch({"run": recipe.name, **record})

    log(_birth(parts))
    run.map(0, dict(topology.masks))
    step, best, logged, silent, valid = 0, -1.0, 0, set[str](), None
    for epoch in range(1, (settings.stop or settings.epochs) + 1):
        model.train()
        sums = _Sums()
        batches = training_batches(
            data.train, recipe.data.batch, seed=recipe.seed, epoch=epoch, augment=recipe.data.augment
        )
        with clock:
            for x, y in batches:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    logits = model(x)
                    loss = criterion(logits, y, inputs=x)
                if not bool(loss.isfinite()):
                    raise _diverged(float(loss.detach()), f"step {step + 1} (epoch {epoch}) of {folder}", epoch - 1)
                loss.backward()
                topology.mask_gradients()
                if settings.clip is not None:
                    clip_grad_norm_(model.parameters(), settings.clip)
                optimizer.step()
                parts.schedule.step()
                optimizer.zero_grad()
                step += 1
                criterion.update(model, step)
                sums.add(loss, logits, y, criterion.parts)
                if len(topology.events) > logged:
                    logged = len(topology.events)
                    log(_event(parts))
                    run.map(step, dict(topology.masks))
        last = epoch == (settings.stop or settings.epochs)
        if last:
            again = training_batches(data.train, recipe.data.batch, seed=recipe.seed, epoch=epoch, augment=False)
            reestimate(model, islice(again, REESTIMATE))
        valid = evaluate(model, plain_batches(data.valid, 256)) if len(data.valid) else None
        if valid and not math.isfinite(valid.loss):
            raise _diverged(valid.loss, f"the validation after epoch {epoch} of {folder}", epoch - 1)
        log(_epoch(epoch, step, clock.seconds, parts, sums.means(), valid))
        warn_of_silence(valid, silent)
        manifest = {"epoch": epoch, "step": step, "steps": parts.steps, "recipe_hash": recipe.hash}
        manifest["data"] = asdict(data.form)
        save(folder / "last.safetensors", model, topology, manifest)
        # An epoch counts only once the wiring is final: a denser network's accuracy would stand beside its price.
        reached = valid.accuracy if valid else 0.0
        if (reached >= best and step >= topology.last_event) or (last and best < 0):
            best = reached
            save(folder / "best.safetensors", model, topology, manifest)
        run.write_maps()
    return finish(run, recipe, parts, clock.seconds, valid, teacher_run, command)


def _with_teacher(
    recipe: Recipe, folder: Path, teacher_run: str | Path | None, watch: Watch
) -> tuple[Parts, Path | None]:
    """The parts of the training, and the run of its trained teacher, which is trained now where there is none."""
    first = teacher_recipe(recipe)
    if recipe.distill.teacher == "network":
        teacher_run = recipe.distill.run
    elif first is not None and teacher_run is None:
        check(recipe)  # whatever cannot be meant shall show before minutes of training
        teacher_run = folder / "teacher"
        if not finished(teacher_run, first):
            fit(first, teacher_run, watch=watch)
    if teacher_run is None:
        return assemble(recipe), None
    trained_teacher(Path(teacher_run))  # it will stand beside the student: what is missing there shall show now
    teacher = load(teacher_run).model.to(device_of(recipe))
    return assemble(recipe, teacher), Path(teacher_run)


def _diverged(loss: float, where: str, saved: int) -> TrainingError:
    kept = f"Epoch {saved} is saved" if saved else "No epoch was finished yet"
    return TrainingError(f"the loss is {loss} at {where}: lower training.lr or set training.clip. {kept}")


class _Clock:
    """Seconds spent inside `with clock:`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start


class _Sums:
    """Means over the batches of an epoch, kept on the device until asked for."""

    def __init__(self) -> None:
        self._values: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor, logits: torch.Tensor, y: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        right = (over_time(logits.detach(), "mean").argmax(dim=1) == y).float().mean()
        self._values.append(torch.stack([loss.detach(), right, parts["label"], parts["distill"]]).float())

    def means(self) -> dict[str, float]:
        names = ("loss", "accuracy", "label_loss", "distill_loss")
        return dict(zip(names, torch.stack(self._values).mean(dim=0).tolist(), strict=True))


def _birth(parts: Parts) -> dict[str, Any]:
    topology = parts.topology
    layers = {
        name: {"connections": int(m.sum()), "of": m.numel(), "shape": list(m.shape)}
        for name, m in topology.masks.items()
    }
    density = topology.connections / topology.possible
    return {
        "kind": "birth",
        "step": 0,
        "steps": parts.steps,
        "layers": layers,
        "density": density,
        "mask_hash": topology.mask_hash,
    }


def _event(parts: Parts) -> dict[str, Any]:
    event = parts.topology.events[-1]
    return {"kind": "event", **event.__dict__}


def _epoch(
    epoch: int, step: int, seconds: float, parts: Parts, train: dict[str, float], valid: Evaluation | None
) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "epoch": epoch,
        "step": step,
        "seconds": round(seconds, 3),
        "lr": parts.schedule.get_last_lr()[0],
        "train": {**train, "distill_loss": train["distill_loss"] if parts.criterion.teacher else None},
        "valid": {"loss": valid.loss, "accuracy": valid.accuracy} if valid else None,
        "rates": valid.rates if valid else {},
    }
