"""Data sets in memory, and batches that are a pure function of (seed, epoch, index)."""

from regraft.data.batches import as_input, count, plain_batches, training_batches
from regraft.data.registry import DATA, Dataset, Form, Split, load

__all__ = ["DATA", "Dataset", "Form", "Split", "as_input", "count", "load", "plain_batches", "training_batches"]
