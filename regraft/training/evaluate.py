"""What a network does on data: loss, accuracy, firing rates; and normalisation re-estimated after training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from regraft.distill import cross_entropy, over_time
from regraft.errors import SilentLayerWarning, UsageError
from regraft.metrics import neuron_modules
from regraft.metrics.observe import observing
from regraft.training.ranks import weighted

Batches = Iterable[tuple[Tensor, Tensor]]
Forward = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy of the mean logits, share of right answers, samples; the firing rate of each neuron layer,
    where it was asked for."""

    loss: float
    accuracy: float
    samples: int
    rates: dict[str, float]


def evaluate(model: nn.Module, batches: Batches, *, forward: Forward | None = None, rates: bool = False) -> Evaluation:
    """Run `model` in eval mode over `batches` of `(x, y)`; the mode it was in is restored.

    Args:
        forward: `forward(model, x)` gives the logits `[N, K]` or `[T, N, K]`; `model(x)` unless given.
        rates: take firing rates, too. Neurons that are looked at are called one by one, so it takes longer.

    Raises:
        UsageError: there is no sample.
    """
    loss = right = samples = 0.0
    totals: dict[str, list[float]] = {}
    with observing(model) as handles:
        if rates:
            handles += _listen(model, totals)
        for x, y in _on_device(model, batches):
            logits = over_time(model(x) if forward is None else forward(model, x), "mean").float()
            loss += float(cross_entropy(logits, y)) * len(y)
            right += int((logits.argmax(dim=1) == y).sum())
            samples += len(y)
    if not samples:
        raise UsageError("evaluate() got no samples: the loader is empty")
    return Evaluation(loss / samples, right / samples, int(samples), {k: s / max(1, n) for k, (s, n) in totals.items()})


def combined(found: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of several, each on its own samples."""
    if len(found) == 1:
        return found[0]
    samples = [one.samples for one in found]
    rates = {name: weighted([one.rates[name] for one in found], samples) for name in found[0].rates}
    loss, accuracy = (weighted([getattr(one, key) for one in found], samples) for key in ("loss", "accuracy"))
    return Evaluation(loss, accuracy, sum(samples), rates)


def _on_device(model: nn.Module, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    device = next((p.device for p in model.parameters()), None)
    for x, y in batches:
        yield x.to(device), y.to(device)


def _listen(model: nn.Module, totals: dict[str, list[float]]) -> Iterator[RemovableHandle]:
    """Hooks that add up the sum and the number of the outputs of each neuron layer."""
    for name, module in neuron_modules(model).items():

        def hook(_module: nn.Module, _args: Any, out: Any, name: str = name) -> None:
            spikes = out[0] if isinstance(out, tuple) else out
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += float(spikes.sum(dtype=torch.float32))
            total[1] += spikes.numel()

        yield module.register_forward_hook(hook)


def warn_of_silence(found: Evaluation | None, known: Sequence[str]) -> list[str]:
    """Warn of layers that never fired on the validation split, once for each; returns all that were warned of."""
    silent = {name for name, rate in (found.rates if found else {}).items() if rate == 0}.difference(known)
    for name in sorted(silent):
        warnings.warn(
            f"layer {name} never fired on the validation split, so no gradient passes it: lower model.threshold, "
            f"raise model.decay or topology.density, or use topology.birth=rescale",
            SilentLayerWarning,
            stacklevel=3,
        )
    return sorted(silent.union(known))


def reestimate(model: nn.Module, batches: Batches, *, forward: Forward | None = None) -> None:
    """Set the statistics of normalisation to their plain average over `batches`; changes no weight.

    Running averages lag behind weights and wiring; this takes them at the end, with everything else in eval mode.
    A model without batch normalisation is left alone. Raises `UsageError` if there is no batch.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    waiting = _on_device(model, batches)
    first = next(waiting, None)
    if first is None:
        raise UsageError("reestimate() got no batch: the loader is empty")
    momenta = {m: m.momentum for m in layers}
    try:
        with observing(model):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # torch's word for a plain average
                layer.train()
            for x, _ in chain([first], waiting):
                _ = model(x) if forward is None else forward(model, x)
    finally:
        for layer in layers:
            layer.momentum = momenta[layer]
