"""Data sets in memory, and batches that are a pure function of (seed, epoch, index)."""

from regraft.data.augment import Augmentation
from regraft.data.batches import as_input, count, plain_batches, training_batches
from regraft.data.registry import DATA, FACTS, load
from regraft.data.splits import Dataset, Facts, Form, Normalisation, Split

__all__ = [
    "DATA",
    "FACTS",
    "Augmentation",
    "Dataset",
    "Facts",
    "Form",
    "Normalisation",
    "Split",
    "as_input",
    "count",
    "load",
    "plain_batches",
    "training_batches",
]
