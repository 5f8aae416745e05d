"""Synaptic operations of a sparse spiking network: regraft, SpikingJelly, NeuroBench and a plain loop.

    python benchmarks/synops_vs_peers.py [--density 0.1] [--json PATH]

A small convolutional network (2 convolutions and a linear layer behind spikes) in which 90 % of the connections are
absent. The truth is a loop over spikes and existing connections, one addition at a time. A peer that is not installed
is left out, with the reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

from regraft.metrics import count_connections, measure
from regraft.neurons import LIF


def network(density: float, seed: int = 0) -> tuple[nn.Sequential, Tensor, dict[str, Tensor]]:
    """The network, spikes `[T*N, 2, 8, 8]` for it (T = 2, N = 4, 30 % firing), and its masks."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), LIF(steps=2, threshold=0.3),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False), LIF(steps=2, threshold=0.3),
        nn.Flatten(), nn.Linear(8 * 4 * 4, 5, bias=False),
    ).eval()  # fmt: skip
    masks = {}
    for name, parameter in model.named_parameters():
        masks[name] = torch.rand_like(parameter) < density
        parameter.data.abs_().clamp_min_(1e-3).mul_(3.0).mul_(masks[name])  # so that spikes reach every layer
    return model, (torch.rand(8, 2, 8, 8) < 0.3).float(), masks


def by_loop(model: nn.Sequential, x: Tensor, masks: dict[str, Tensor]) -> int:
    """One addition for each spike at each existing connection, in plain Python."""
    total = 0
    with torch.no_grad():
        for name, layer in model.named_children():
            out = layer(x)
            if isinstance(layer, nn.Linear):
                mask = masks[f"{name}.weight"].tolist()
                total += sum(there for row in x.tolist() for to in mask for s, there in zip(row, to, strict=True) if s)
            elif isinstance(layer, nn.Conv2d):
                total += _convolution(layer, masks[f"{name}.weight"], x, out.shape[2:])
            x = out
    return total


def _convolution(layer: nn.Conv2d, mask: Tensor, x: Tensor, size: torch.Size) -> int:
    total, height, width = 0, x.shape[2], x.shape[3]
    stride, pad = layer.stride, (int(layer.padding[0]), int(layer.padding[1]))
    for image in x.tolist():
        for _, channel, i, j in mask.nonzero().tolist():  # existing connections
            for row, column in itertools.product(range(size[0]), range(size[1])):
                y, z = row * stride[0] + i - pad[0], column * stride[1] + j - pad[1]
                if 0 <= y < height and 0 <= z < width:
                    total += int(image[channel][y][z])
    return total


def spikingjelly(model: nn.Module, x: Tensor) -> int:
    """`SynOpCounter`: it sees spikes and shapes, not which weights are 0."""
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        model(x)
    return int(counter.get_total())


def neurobench(model: nn.Module, x: Tensor) -> int:
    """`SynapticOperations`, Effective_ACs over all rows of the folded batch."""
    from neurobench.hooks.layer import LayerHook
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    wrapped = TorchModel(model)
    wrapped.connection_hooks = [LayerHook(layer) for layer in wrapped.connection_layers()]
    try:
        metric = SynapticOperations()
        with torch.no_grad():
            predictions = wrapped(x)
            result = metric(wrapped, predictions, (x, torch.zeros(len(x))))
    finally:
        wrapped.close_hooks()
    return round(result["Effective_ACs"] * len(x))


def connection_sparsity(model: nn.Module) -> float:
    """NeuroBench's `ConnectionSparsity`: the share of weights that are 0, rounded."""
    from neurobench.metrics.static import ConnectionSparsity
    from neurobench.models import TorchModel

    return float(ConnectionSparsity()(TorchModel(model)))


def compare(density: float = 0.1, seed: int = 0) -> dict[str, int | float | str]:
    """Every counter on the same spikes; a string says why a peer has no number."""
    model, x, masks = network(density, seed)
    dense = {name: torch.ones_like(mask) for name, mask in masks.items()}
    result: dict[str, int | float | str] = {
        "plain loop": by_loop(model, x, masks),
        "regraft": measure(model, [x], topology=masks).acs,
    }
    peers: dict[str, Callable[[], int]] = {
        "SpikingJelly": lambda: spikingjelly(model, x),
        "NeuroBench": lambda: neurobench(model, x),
    }
    for name, count in peers.items():
        try:
            result[name] = count()
        except ImportError as error:
            result[name] = f"not installed ({error.name})"
    result["plain loop, as if dense"] = by_loop(model, x, dense)
    result["density"] = sum(c.existing for c in count_connections(model, masks)) / sum(
        m.numel() for m in masks.values()
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    result = compare(options.density)
    truth = result["plain loop"]
    assert isinstance(truth, int)
    print(f"{'counter':<24}  {'SOPs':>10}  {'of the truth':>12}   (density {result['density']:.4f})")
    for name, value in result.items():
        if name != "density":
            share = f"{value / truth:.2f}x" if isinstance(value, int) else ""
            print(f"{name:<24}  {value!s:>10}  {share:>12}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
