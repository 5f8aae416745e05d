"""What a trained network does on test samples, kept for the report: its answers, their calibration, one raster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as save_arrays
from torch import Tensor, nn

from regraft.distill import over_time
from regraft.metrics import neuron_modules
from regraft.metrics.firing import binary, known_steps
from regraft.metrics.observe import first_tensor, observing
from regraft.training.evaluate import Evaluation, evaluate
from regraft.training.files import write_bytes

BINS = 15  # Guo et al. 2017
NEURONS = 47  # a layer in the raster; a prime, or an even spacing would meet the same pixel of every channel
WIDE = 2**16  # inputs that a 2-byte column index can tell apart


def answers(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Evaluation, Tensor]:
    """What `evaluate` finds of `model` on `batches` of `(x, y)`, and its logits `[N, K]` or `[T, N, K]`, on the CPU.

    Raises `UsageError` if there is no sample.
    """
    kept: list[Tensor] = []

    def keeping(model: nn.Module, x: Tensor) -> Tensor:
        logits = model(x)
        kept.append(logits.float().cpu())
        return logits

    evaluation = evaluate(model, batches, forward=keeping)
    return evaluation, torch.cat(kept, dim=-2)


def calibration(logits: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, Any] | None:
    """How far confidence can be trusted: the reliability diagram and the expected calibration error (ECE).

    Confidence is the largest softmax probability of the logits' mean over time; bin `m` of `bins` holds confidences in
    `((m-1)/bins, m/bins]`; `ECE = sum_m n_m/N abs(accuracy_m - confidence_m)` (Guo et al. 2017, section 2).

    Args:
        logits: `[N, K]` or `[T, N, K]`.
        labels: int64 `[N]`.

    Returns:
        `ece`, and by bin `count`, `confidence` and `accuracy` (shares of 1; null where a bin is empty); None where a
        logit is not finite.
    """
    logits = over_time(logits, "mean").double()
    if not bool(logits.isfinite().all()):
        return None
    confidence, chosen = logits.softmax(dim=1).max(dim=1)
    right = (chosen == labels.to(chosen.device)).double()
    at = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    count, sure, correct = (
        torch.zeros(bins, dtype=torch.float64).index_add_(0, at, values)
        for values in (torch.ones_like(right), confidence, right)
    )
    filled = count > 0
    return {
        "ece": float((correct - sure).abs().sum() / len(right)),
        "count": [int(n) for n in count],
        "confidence": [float(s / n) if f else None for s, n, f in zip(sure, count, filled, strict=True)],
        "accuracy": [float(c / n) if f else None for c, n, f in zip(correct, count, filled, strict=True)],
    }


def agreement(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, float]:
    """Shares of samples: on which both give the same answer (`same`), and who is right.

    `both`, `student`, `teacher` and `neither` (is right) add up to 1. Logits are `[N, K]` or `[T, N, K]`, the mean
    over time counts; labels int64 `[N]`.
    """
    own, taught = (over_time(logits, "mean").argmax(dim=1).cpu() for logits in (student, teacher))
    labels = labels.cpu()
    right, teacher_right = own == labels, taught == labels
    shares = {
        "same": own == taught,
        "both": right & teacher_right,
        "student": right & ~teacher_right,
        "teacher": teacher_right & ~right,
        "neither": ~(right | teacher_right),
    }
    return {name: float(share.double().mean()) for name, share in shares.items()}


def storage(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of the parameters at 4 bytes a value: all of them (`dense`), and without the absent connections.

    `rows` keeps prunable tensors as compressed rows `[out, everything else]`: with each value a column index of 2
    bytes (4 where a row is longer than 65,536), with each row its start in 4 bytes. `bits` keeps one bit for each
    place, whether a connection is there. Statistics of normalisation are not counted: they fold into the weights.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = bits = 4 * (total - sum(mask.numel() for mask in masks.values()))
    for mask in masks.values():
        existing, columns = int(mask.sum()), mask.numel() // max(1, len(mask))
        rows += existing * (4 + (2 if columns <= WIDE else 4)) + 4 * (len(mask) + 1)
        bits += 4 * existing + (mask.numel() + 7) // 8
    return {"dense": 4 * total, "rows": rows, "bits": bits}


def raster(model: nn.Module, x: Tensor, neurons: int = NEURONS) -> dict[str, np.ndarray]:
    """Spikes of some neurons of each layer over time, for one sample; draws nothing, so it is always the same.

    Args:
        x: one sample as a batch: `[1, C, H, W]`, or events `[T, 1, C, H, W]`.
        neurons: at most so many of each layer, evenly spaced over its output taken as one row.

    Returns:
        For each neuron layer whose outputs are all 0 or 1: `spikes/<layer>` uint8 `[T, n]`, `neurons/<layer>` int32
        `[n]`, their places in the row, and `of/<layer>` int32 `[1]`, its length.
    """
    heard: dict[str, list[Tensor]] = {}
    modules = neuron_modules(model)
    steps = known_steps(modules) or 1
    with observing(model) as handles:
        for name, module in modules.items():

            def hook(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                spikes = first_tensor(out)
                if spikes is not None:
                    heard.setdefault(name, []).append(spikes.detach().cpu())

            handles.append(module.register_forward_hook(hook))
        model(x)
    found: dict[str, np.ndarray] = {}
    for name, outputs in heard.items():
        # Called once for each step, or once for all of them; a module used at several places shows the first.
        spikes = torch.stack(outputs) if len(outputs) == steps else outputs[0]
        if not spikes.numel() or spikes.numel() % steps or not binary(spikes):
            continue
        flat = spikes.reshape(steps, -1).numpy().astype(np.uint8)
        size = flat.shape[1]
        chosen = (np.arange(min(neurons, size)) * size) // min(neurons, size)
        found[f"spikes/{name}"] = np.ascontiguousarray(flat[:, chosen])
        found[f"neurons/{name}"] = chosen.astype(np.int32)
        found[f"of/{name}"] = np.array([size], np.int32)
    return found


def write_activity(path: Path, model: nn.Module, x: Tensor, label: int, answer: int) -> None:
    """Write `raster` of the first test sample, and `sample` int32 `[label, answer]`, to `path` (safetensors).

    Raises `RunError` if the file cannot be written.
    """
    found = raster(model, x)
    write_bytes(path, save_arrays({**found, "sample": np.array([label, answer], np.int32)}))
