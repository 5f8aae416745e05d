"""What a network costs: connections, densities, firing, synaptic operations, energy, removable neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import RegraftError, UsageError
from regraft.metrics.connections import (
    Connections,
    Wiring,
    count_connections,
    count_parameters,
    layer_masks,
    weight_name,
    weighted_layers,
)
from regraft.metrics.energy import HOROWITZ, EnergyModel
from regraft.metrics.firing import Firing, FiringRecorder, Neurons, known_steps, neuron_modules
from regraft.metrics.neurons import NeuronReport, inspect_neurons
from regraft.metrics.observe import Forward, batches, observing, plain_forward
from regraft.metrics.synops import LayerOperations, OperationsRecorder

NOT_COUNTED = "memory traffic, bias, normalisation, pooling and neuron updates"


@dataclass(frozen=True)
class Densities:
    """Four densities that papers mix.

    Attributes:
        connections: existing connections over all places for one, in the prunable tensors.
        parameters: all existing parameters over all parameters.
        operations: `existing * positions` over the dense sum: MACs of one step of the layers that ran, whatever the
            input; positions are the outputs of a channel, those at the border counted in full.
        synaptic: operations measured (ACs + MACs a sample) over those of a dense run of the same recipe; None until
            `Measurement.relative_to` was given one.
    """

    connections: float
    parameters: float
    operations: float
    synaptic: float | None = None


@dataclass(frozen=True)
class Measurement:
    """The result of `measure`. Operations are exact integers over all `samples` and all T; prints as a table.

    Attributes:
        steps: T, where it is known.
        connections: one row for each prunable tensor.
        parameters: `(existing, of)`.
        operations: one row for each Linear or Conv module that ran.
        whole: the same, for the same inputs of each layer, if every connection existed.
        firing: one row for each neuron module whose outputs are spikes.
        neurons: removable, constant and silent units (silent: on the first batch); None where they cannot be known.
        notes: what was not counted, and why.
    """

    samples: int
    steps: int | None
    connections: tuple[Connections, ...]
    parameters: tuple[int, int]
    operations: tuple[LayerOperations, ...]
    whole: tuple[LayerOperations, ...]
    firing: tuple[Firing, ...]
    neurons: NeuronReport | None
    densities: Densities
    energy_model: EnergyModel
    notes: tuple[str, ...]

    @property
    def existing(self) -> int:
        """Existing connections of all prunable tensors."""
        return sum(row.existing for row in self.connections)

    @property
    def of(self) -> int:
        """Places for a connection in all prunable tensors."""
        return sum(row.of for row in self.connections)

    @property
    def acs(self) -> int:
        """Accumulates over all samples."""
        return sum(row.acs for row in self.operations)

    @property
    def macs(self) -> int:
        """Multiply-accumulates over all samples; a static first layer counts once."""
        return sum(row.macs for row in self.operations)

    @property
    def macs_nonzero(self) -> int:
        """The MACs whose input is not 0."""
        return sum(row.macs_nonzero for row in self.operations)

    @property
    def macs_if_repeated(self) -> int:
        """The MACs if layers computed once for a static input were computed at each of the T steps."""
        return sum(row.macs * row.repeats for row in self.operations)

    @property
    def acs_if_repeated(self) -> int:
        """The ACs, likewise (a static input of spikes)."""
        return sum(row.acs * row.repeats for row in self.operations)

    @property
    def energy(self) -> float:
        """pJ a sample."""
        return self.energy_model.picojoules(macs=self.macs, acs=self.acs) / self.samples

    @property
    def energy_if_repeated(self) -> float:
        """pJ a sample, with the T-fold figures."""
        return self.energy_model.picojoules(macs=self.macs_if_repeated, acs=self.acs_if_repeated) / self.samples

    @property
    def silent_layers(self) -> tuple[str, ...]:
        """Neuron modules that never fired."""
        return tuple(row.name for row in self.firing if row.spikes == 0)

    def relative_to(self, dense: Measurement) -> Measurement:
        """This measurement with `densities.synaptic`: operations a sample over those of `dense`.

        Raises `UsageError` where the dense run has no operations.
        """
        reference = dense.acs + dense.macs
        if reference == 0:
            raise UsageError("the dense measurement has no operations: its layers never ran or never got a spike")
        ratio = (self.acs + self.macs) * dense.samples / (reference * self.samples)
        return dataclasses.replace(self, densities=dataclasses.replace(self.densities, synaptic=ratio))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings, lists and dicts (JSON)."""
        return {
            "samples": self.samples,
            "steps": self.steps,
            "existing": self.existing,
            "of": self.of,
            "parameters": {"existing": self.parameters[0], "of": self.parameters[1]},
            "densities": dataclasses.asdict(self.densities),
            "acs": self.acs,
            "macs": self.macs,
            "macs_nonzero": self.macs_nonzero,
            "acs_per_sample": self.acs / self.samples,
            "macs_per_sample": self.macs / self.samples,
            "acs_if_repeated": self.acs_if_repeated,
            "macs_if_repeated": self.macs_if_repeated,
            "energy_pj_per_sample": self.energy,
            "energy_pj_per_sample_if_repeated": self.energy_if_repeated,
            "energy_model": dataclasses.asdict(self.energy_model),
            "energy_not_counted": NOT_COUNTED,
            "connections": [dataclasses.asdict(row) | {"density": row.density} for row in self.connections],
            "operations": [dataclasses.asdict(row) for row in self.operations],
            "firing": [dataclasses.asdict(row) for row in self.firing],
            "silent_layers": list(self.silent_layers),
            "neurons": None if self.neurons is None else [dataclasses.asdict(row) for row in self.neurons.layers],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in rows]


def _lines(m: Measurement) -> list[str]:
    by_weight = {weight_name(row.name): row for row in m.operations}
    rows: list[tuple[str, ...]] = [("tensor", "connections", "of", "density", "ACs/sample", "MACs/sample")]
    for row in m.connections:
        ops = by_weight.pop(row.name, None)
        costs = ("-", "-") if ops is None else (f"{ops.acs / m.samples:,.1f}", f"{ops.macs / m.samples:,.1f}")
        rows.append((row.name, f"{row.existing:,}", f"{row.of:,}", f"{row.density:.4f}", *costs))
    for name, ops in by_weight.items():  # layers that are not prunable still compute
        rows.append((name, "-", "-", "-", f"{ops.acs / m.samples:,.1f}", f"{ops.macs / m.samples:,.1f}"))
    total = (f"{m.acs / m.samples:,.1f}", f"{m.macs / m.samples:,.1f}")
    rows.append(("total", f"{m.existing:,}", f"{m.of:,}", f"{m.densities.connections:.4f}", *total))
    lines = _table(rows)
    if m.firing:
        lines += ["", *_table([("neurons", "units", "silent", "rate"), *(_firing_row(row) for row in m.firing)])]
    if m.neurons is not None:
        lines += ["", f"{m.neurons.removable:,} neurons removable, {m.neurons.constant:,} constant"]
    d = m.densities
    lines += [
        "",
        f"density: connections {d.connections:.4f}, parameters {d.parameters:.4f}, operations {d.operations:.4f}, "
        f"synaptic operations {'-' if d.synaptic is None else f'{d.synaptic:.4f}'}",
        f"energy: {m.energy / 1e6:,.4g} µJ a sample at {m.energy_model}",
        f"  not counted: {NOT_COUNTED}",
    ]
    if m.macs_if_repeated != m.macs or m.acs_if_repeated != m.acs:
        lines.append(
            f"  with static layers computed at each of {m.steps} steps: {m.acs_if_repeated / m.samples:,.1f} ACs, "
            f"{m.macs_if_repeated / m.samples:,.1f} MACs, {m.energy_if_repeated / 1e6:,.4g} µJ a sample"
        )
    lines.append(f"{m.samples:,} samples, {'unknown number of' if m.steps is None else m.steps} steps")
    return lines + [f"note: {note}" for note in m.notes]


def _firing_row(row: Firing) -> tuple[str, ...]:
    return (row.name, f"{row.units:,}", f"{row.silent:,}", f"{row.rate:.4f}")


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    topology: Wiring | None = None,
    forward: Forward | None = None,
    steps: int | None = None,
    limit: int | None = None,
    neurons: Neurons = (),
    energy: EnergyModel = HOROWITZ,
) -> Measurement:
    """Run `model` on `loader` in eval mode and count what it costs (`regraft.metrics.synops` says exactly what).

    The model is left as it was: modes restored, hooks removed, no gradients.

    Args:
        loader: batches `(x, y)` or `x`; a tensor is not a loader.
        topology: a `Topology` or masks by parameter name; without, a connection exists where its weight is not 0.
        forward: called as `forward(model, x)`, for example to loop over time or reset neurons first; default
            `model(x)`. Layers called several times are summed.
        steps: T, for the T-fold figures; default: the attribute `steps` of the neurons.
        limit: at most this many batches.
        neurons: further class names or classes that are spiking neurons.
        energy: picojoules of one operation.

    Raises:
        UsageError: no batch, steps or limit below 1.
        StructureError, ShapeError: masks that do not fit the model.
    """
    if steps is not None and steps < 1:
        raise UsageError(f"steps is {steps}: a spiking network needs at least 1 time step")
    if isinstance(loader, Tensor):
        raise UsageError("measure takes batches: give a loader or a list, such as [(x, y)]")
    spiking = neuron_modules(model, neurons)
    steps = known_steps(spiking) if steps is None else steps
    masks, layers = layer_masks(model, topology), weighted_layers(model)
    operations, firing = OperationsRecorder(layers, steps), FiringRecorder(spiking, steps)
    first: Any = None
    with observing(model) as handles:
        handles.extend([*operations.listen(), *firing.listen()])
        for x, samples in batches(model, loader, limit):
            first = (x, range(samples)) if first is None else first
            operations.begin(samples)
            firing.begin(samples)
            (forward or plain_forward)(model, x)
            operations.end()
    connections = count_connections(model, topology)
    parameters = count_parameters(model, connections)
    result = operations.result(masks)
    whole = operations.result({name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()})
    notes = _uncounted(model, layers, operations.unheard())
    notes += [f"{name}: its outputs are not all 0 or 1, so it has no firing rate" for name in sorted(firing.graded)]
    report: NeuronReport | None = None
    try:
        report = inspect_neurons(model, [first], masks=topology, neurons=neurons, forward=forward)
        notes += [f"removable neurons: not followed through {name}" for name in report.opaque]
    except RegraftError as error:
        notes.append(f"removable neurons: {error}")
    return Measurement(
        samples=operations.samples,
        steps=steps,
        connections=connections,
        parameters=parameters,
        operations=result,
        whole=whole,
        firing=firing.result(),
        neurons=report,
        densities=_densities(connections, parameters, result, masks),
        energy_model=energy,
        notes=tuple(notes),
    )


def _densities(
    connections: tuple[Connections, ...],
    parameters: tuple[int, int],
    operations: tuple[LayerOperations, ...],
    masks: dict[str, Tensor],
) -> Densities:
    existing, of = sum(row.existing for row in connections), sum(row.of for row in connections)
    sparse = sum(int(masks[row.name].sum()) * row.positions for row in operations)
    dense = sum(masks[row.name].numel() * row.positions for row in operations)
    return Densities(
        connections=existing / of if of else 0.0,
        parameters=parameters[0] / parameters[1] if parameters[1] else 0.0,
        operations=sparse / dense if dense else 0.0,
    )


def _uncounted(model: nn.Module, layers: dict[str, Any], unheard: list[str]) -> list[str]:
    """Weights whose operations are missing from the count: never silently."""
    notes = [
        f"not counted: {name} ({type(layers[name]).__name__}) never ran as a module (used functionally, or not at all)"
        for name in unheard
    ]
    counted = {id(layer.weight) for layer in layers.values()}
    for module_name, module in model.named_modules():
        if module_name in layers or type(module).__module__ == "torch.nn.utils.parametrize":
            continue
        names = [n for n, p in module.named_parameters(recurse=False) if p.dim() > 1 and id(p) not in counted]
        if names:
            notes.append(
                f"not counted: {type(module).__name__} {module_name or '(the model)'}: operations with "
                f"{', '.join(names)} (only Linear and Conv modules are)"
            )
    return notes
