"""What a network costs and what of it is idle: connections, synaptic operations, energy, removable neurons."""

from regraft.metrics.connections import Connections, Wiring, count_connections
from regraft.metrics.energy import HOROWITZ, EnergyModel
from regraft.metrics.firing import NEURON_CLASSES, Firing, neuron_modules
from regraft.metrics.measure import Densities, Measurement, measure
from regraft.metrics.neurons import NeuronCounts, NeuronReport, inspect_neurons, remove_neurons
from regraft.metrics.synops import LayerOperations, operations

__all__ = [
    "HOROWITZ",
    "NEURON_CLASSES",
    "Connections",
    "Densities",
    "EnergyModel",
    "Firing",
    "LayerOperations",
    "Measurement",
    "NeuronCounts",
    "NeuronReport",
    "Wiring",
    "count_connections",
    "inspect_neurons",
    "measure",
    "neuron_modules",
    "operations",
    "remove_neurons",
]
