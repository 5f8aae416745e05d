"""The end of a run: what it reached and what it costs, measured on the test set, as `result.json`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.data import plain_batches
from regraft.distill import AverageTeacher, NestedTeacher, NetworkTeacher, PreviousTeacher, StepTeacher, over_time
from regraft.errors import RunError, TrainingError
from regraft.execution import execute
from regraft.metrics import Measurement, measure
from regraft.metrics.connections import weighted_layers
from regraft.training.build import Parts, arithmetic
from regraft.training.evaluate import Evaluation, evaluate
from regraft.training.files import write_json
from regraft.training.load import load
from regraft.training.recipe import Recipe
from regraft.training.recording import BINS, agreement, answers, calibration, storage, write_activity
from regraft.training.run import RunFolder

FORMAT = 1


def finish(
    run: RunFolder,
    recipe: Recipe,
    parts: Parts,
    seconds: float,
    valid: Evaluation | None,
    teacher_run: Path | None,
    command: str | None,
) -> dict[str, Any]:
    """Measure the trained network, write `activity.safetensors` and `result.json`, and return what that holds."""
    model, topology, test = parts.model, parts.topology, parts.data.test
    chosen = json.loads((run.path / "best.json").read_text(encoding="utf-8"))
    best = load(run.path, "best")
    selected = best.model.to(test.y.device)
    execute(selected, best.topology, parts.execution.calibration)
    with arithmetic(test.y.device, parts.precision):  # what is counted below is counted in fp32
        last, logits = answers(model, plain_batches(test, 256))
        best_accuracy = evaluate(selected, plain_batches(test, 256)).accuracy
        taught = teacher_logits(parts, logits)
    if not math.isfinite(last.loss):
        raise TrainingError(f"the loss on the test set is {last.loss} at the end of {run.path}: lower training.lr")
    epochs = [r for r in _records(run.path) if r["kind"] == "epoch"]
    valids = {r["epoch"]: r["valid"]["accuracy"] for r in epochs if r["valid"]}
    cost = measure(model.eval(), plain_batches(test, 256), topology=topology)
    heard = measure(model, plain_batches(parts.data.valid if valid else test, 256), topology=topology)
    result = {
        "format": FORMAT,
        "name": recipe.name,
        "recipe_hash": recipe.hash,
        "seed": recipe.seed,
        "command": command or "regraft train recipe.yaml",
        "accuracy": {
            "last": last.accuracy,
            "selected": best_accuracy,
            "selected_epoch": chosen["epoch"],
            "valid_last": valid.accuracy if valid else None,
            "valid_selected": valids.get(chosen["epoch"]),
        },
        "test_samples": last.samples,
        "connections": {"existing": topology.connections, "of": topology.possible},
        "exploration": topology.exploration,
        "mask_hash": topology.mask_hash,
        **_cost(model, cost, heard),
        "bytes": storage(model, topology.masks),
        "seconds": {
            "train": round(seconds, 3),
            "rewiring": round(sum(e.seconds for e in topology.events), 4),
        },
        "teacher": teacher_of(recipe, parts, teacher_run, taught),
        "agreement": None if taught is None else agreement(logits, taught, test.y),
        "calibration": {
            "bins": BINS,
            "student": calibration(logits, test.y.cpu()),
            "teacher": None if taught is None else calibration(taught, test.y.cpu()),
        },
    }
    x, y = next(plain_batches(test, 1))
    answer = int(over_time(logits, "mean")[0].argmax())
    write_activity(run.path / "activity.safetensors", model, x, int(y[0]), answer)
    write_json(run.path / "result.json", result)  # the last: its presence means finished
    return result


def teacher_logits(parts: Parts, own: Tensor) -> Tensor | None:
    """The teacher's logits on the test set, `[N, K]` or `[T, N, K]` on the CPU; None where it is no network.

    `own` are the student's: a step that teaches the others is one of them.
    """
    teacher, test = parts.criterion.teacher, parts.data.test
    if isinstance(teacher, StepTeacher):
        return own[int(teacher.choose(own, test.y.cpu()))]
    if isinstance(teacher, NestedTeacher):
        nested = teacher
        kept: list[Tensor] = []

        def half(model: nn.Module, x: Tensor) -> Tensor:
            kept.append(nested.logits(x))
            return kept[-1]

        evaluate(parts.model, plain_batches(test, 256), forward=half)
        return torch.cat(kept, dim=-2).float().cpu()
    if isinstance(teacher, NetworkTeacher | AverageTeacher) or (isinstance(teacher, PreviousTeacher) and teacher.ready):
        return answers(teacher.model, plain_batches(test, 256))[1]
    return None


def teacher_of(recipe: Recipe, parts: Parts, teacher_run: Path | None, logits: Tensor | None) -> dict[str, Any] | None:
    """What stands beside the student: the teacher's kind, accuracy on the same test set, density, and training time.

    `logits` are those of `teacher_logits`.
    """
    if parts.criterion.teacher is None:
        return None
    told: dict[str, Any] = {"kind": recipe.distill.teacher, "accuracy": None, "density": None, "seconds": 0.0}
    if teacher_run is not None:
        return told | trained_teacher(teacher_run)
    if logits is not None:
        told["accuracy"] = float((over_time(logits, "mean").argmax(dim=1) == parts.data.test.y.cpu()).double().mean())
    if isinstance(parts.criterion.teacher, NestedTeacher):
        told["density"] = parts.topology.connections / parts.topology.possible * recipe.distill.keep
    return told


def trained_teacher(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself as a teacher; its time includes its own teacher's.

    Raises `RunError` if the run is not finished, or its result is damaged or of another format version.
    """
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if result["format"] != FORMAT:
            raise RunError(f"{folder / 'result.json'} has format {result['format']!r}; this regraft reads {FORMAT}")
        own = 0.0 if result["teacher"] is None else result["teacher"]["seconds"]
        return {
            "name": result["name"],
            "accuracy": result["accuracy"]["last"],
            "density": result["density"]["connections"],
            "seconds": result["seconds"]["train"] + own,
        }
    except OSError:
        raise RunError(f"{folder} holds no finished run: it has no result.json") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(f"{folder / 'result.json'} is damaged: train the run again") from None


def _records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _cost(model: nn.Module, cost: Measurement, heard: Measurement) -> dict[str, Any]:
    """Operations on the test set (`cost`); what never fired, on the validation split (`heard`)."""
    neurons = cost.neurons
    silent = {row.name: row.silent for row in heard.firing}
    return {
        "density": asdict(cost.densities),
        "synops": {
            "acs": cost.acs / cost.samples,
            "macs": cost.macs / cost.samples,
            "macs_repeated": cost.macs_if_repeated / cost.samples,
            "steps": cost.steps or 1,  # a network without neurons that we know computes once
            "dense": _dense(model, cost),
        },
        "energy": {
            "joule": cost.energy * 1e-12,
            "mac_pj": cost.energy_model.mac,
            "ac_pj": cost.energy_model.ac,
        },
        "neurons": {
            "of": sum(row.units for row in cost.firing),
            "removable": None if neurons is None else neurons.removable,
            "constant": None if neurons is None else neurons.constant,
            "silent": sum(silent.values()),
            "layers": [
                {
                    "name": row.name,
                    "of": row.units,
                    "removable": row.removable,
                    "constant": row.constant,
                    "silent": silent.get(row.name),
                }
                for row in (() if neurons is None else neurons.layers)
            ],
        },
        "rates": {row.name: row.rate for row in cost.firing},
    }


def _dense(model: nn.Module, cost: Measurement) -> dict[str, float]:
    """Operations a sample if every connection existed: `step` and `steps`, MACs of one step and of all T (static
    layers once); `acs` and `macs`, what the inputs that really arrived would cause."""
    layers, steps = weighted_layers(model), cost.steps or 1
    size = {row.name: layers[row.name].weight.numel() * row.positions for row in cost.whole}
    return {
        "step": sum(size.values()),
        "steps": sum(size[row.name] * steps / row.repeats for row in cost.whole),
        "acs": sum(row.acs for row in cost.whole) / cost.samples,
        "macs": sum(row.macs for row in cost.whole) / cost.samples,
    }
