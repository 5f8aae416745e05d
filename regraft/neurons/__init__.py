"""Spiking neurons: what fires, when, and what gradient it lets through."""

from regraft.neurons.convert import from_nir, from_norse, from_sinabs, from_snntorch, from_spikingjelly, to_nir
from regraft.neurons.fold import fold, repeat, set_steps, unfold
from regraft.neurons.lif import IF, LIF, PLIF
from regraft.neurons.multistep import multistep
from regraft.neurons.surrogate import Atan, Rectangle, Sigmoid, Surrogate, Triangle, spike

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Atan",
    "Rectangle",
    "Sigmoid",
    "Surrogate",
    "Triangle",
    "fold",
    "from_nir",
    "from_norse",
    "from_sinabs",
    "from_snntorch",
    "from_spikingjelly",
    "multistep",
    "repeat",
    "set_steps",
    "spike",
    "to_nir",
    "unfold",
]
