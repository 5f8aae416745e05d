"""Which modules are spiking neurons, how often they fire, and which of their channels never do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from regraft.metrics.exact import EXACT, peak
from regraft.metrics.observe import first_tensor

NEURON_CLASSES = frozenset(
    {
        *("LIF", "IF", "PLIF"),  # regraft, norse, sinabs
        *("BaseNode", "SimpleBaseNode", "IFNode", "LIFNode", "ParametricLIFNode", "PSN", "MaskedPSN", "SlidingPSN"),
        *("SpikingNeuron", "LeakyParallel", "Leaky", "Lapicque", "Synaptic", "Alpha", "RLeaky", "RSynaptic"),
        *("SNNCell", "SNNRecurrentCell", "SNN", "SNNRecurrent", "LIFBox", "LIFBoxCell", "LIFCell", "IAFCell"),
        *("LIFRecurrent", "LIFRecurrentCell", "LIFRefracCell", "LIFExCell", "LIFAdExCell", "LSNN", "LSNNCell"),
        *("IAF", "ALIF", "AdaptiveIF", "LIFSqueeze", "IAFSqueeze"),
    }
)  # by name, own or inherited, so that no library has to be imported: SpikingJelly, snnTorch, norse, sinabs

Neurons = Collection[str | type[nn.Module]]


def neuron_modules(model: nn.Module, also: Neurons = ()) -> dict[str, nn.Module]:
    """The outermost modules whose class, or one it inherits from, is a known neuron or one of `also`, by name.

    Known by name only, a module with Linear or Conv layers inside is somebody's network, whatever it is called.
    """
    names = NEURON_CLASSES | {name for name in also if isinstance(name, str)}
    classes = tuple(cls for cls in also if isinstance(cls, type))
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inherited = any(cls.__name__ in names for cls in type(module).__mro__) and not _is_network(module)
        inside = any(name.startswith(f"{outer}.") or outer == "" for outer in found)
        if (inherited or isinstance(module, classes)) and not inside:
            found[name] = module
    return found


def _is_network(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Linear | _ConvNd | nn.modules.batchnorm._NormBase) for m in module.modules())


def known_steps(neurons: Mapping[str, nn.Module]) -> int | None:
    """T, from the attribute `steps` of the neurons; None where they have none."""
    steps = [n.steps for n in neurons.values() if isinstance(getattr(n, "steps", None), int)]
    return max((step for step in steps if isinstance(step, int)), default=None)


def channel_axis(module: nn.Module, shape: torch.Size, samples: int, steps: int | None) -> int:
    """The axis of a neuron's output along which its units lie: 1 for `[N, C, ...]` and `[T*N, C, ...]`, 2 for
    `[T, N, C, ...]` (SpikingJelly in step mode 'm', norse over sequences)."""
    folded = shape[0] in (samples, samples * (steps or 1))
    unfolded = len(shape) > 2 and shape[1] == samples
    if getattr(module, "step_mode", None) == "m" or (unfolded and not folded):
        return min(2, len(shape) - 1)
    return min(1, len(shape) - 1)


def binary(x: Tensor) -> bool:
    """Whether every value is 0 or 1: spikes are known by value."""
    return peak(x, 1) is not None


def _by_unit(spikes: Tensor, axis: int) -> Tensor:
    """How many spikes along each other axis, int64."""
    others = [other for other in range(spikes.dim()) if other != axis]
    kind = torch.float32 if spikes.numel() <= EXACT * spikes.shape[axis] else torch.float64
    return (spikes.sum(others, dtype=kind) if others else spikes).to(torch.int64)


@dataclass(frozen=True)
class Firing:
    """What one neuron module did on the data.

    Attributes:
        spikes: their number over all samples, positions and T.
        rate: mean spikes for each neuron and step, in [0, 1].
        units: channels.
        silent: channels that never fired on these data.
    """

    name: str
    spikes: int
    rate: float
    units: int
    silent: int


class FiringRecorder:
    """Listens to the outputs of the neuron modules of a model."""

    def __init__(self, neurons: dict[str, nn.Module], steps: int | None) -> None:
        self.neurons = neurons
        self.steps = steps
        self.samples = 0
        self.graded: set[str] = set()
        self._spikes: dict[tuple[str, int], Tensor] = {}  # a module used at two widths has two rows
        self._elements: dict[tuple[str, int], int] = {}

    def listen(self) -> Iterator[Any]:
        """Registers the hooks; yields their handles."""
        for name, module in self.neurons.items():

            def hook(module: nn.Module, _: Any, out: Any, name: str = name) -> None:
                self._hear(name, module, first_tensor(out))

            yield module.register_forward_hook(hook)

    def begin(self, samples: int) -> None:
        """A forward pass over that many samples begins."""
        self.samples = samples

    def _hear(self, name: str, module: nn.Module, out: Tensor | None) -> None:
        if out is None or not binary(out):
            self.graded.add(name)
            return
        axis = channel_axis(module, out.shape, self.samples, self.steps)
        spikes = _by_unit(out, axis)
        key = (name, spikes.numel())
        self._spikes[key] = self._spikes[key] + spikes if key in self._spikes else spikes
        self._elements[key] = self._elements.get(key, 0) + out.numel()

    def result(self) -> tuple[Firing, ...]:
        """One row for each neuron module whose outputs were all spikes."""
        rows = []
        for (name, units), spikes in self._spikes.items():
            if name not in self.graded:
                total = int(spikes.sum())
                silent = int((spikes == 0).sum())
                rows.append(Firing(name, total, total / self._elements[name, units], units, silent))
        return tuple(rows)
