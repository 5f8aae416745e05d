"""`regraft eval`: a finished run on its test set again, from its files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from regraft.cli.arguments import parse


@dataclass(frozen=True)
class Eval:
    """Accuracy and cost of a saved network, measured anew on its recipe's test set."""

    folder: tyro.conf.Positional[Path] = Path("runs/digits/sparse")
    """A run folder."""
    which: Literal["last", "best"] = "last"
    """The network as it was at the end, or at the epoch chosen on the validation split."""
    batch: int = 256
    """Samples at a time."""


def run(arguments: list[str]) -> int:
    """Parse, load, measure, print."""
    given = parse(Eval, arguments, verb="eval", example="regraft eval runs/digits/sparse", default=Eval())

    from regraft.data import plain_batches
    from regraft.errors import UsageError
    from regraft.execution import execute
    from regraft.metrics import measure
    from regraft.training.build import arithmetic, dataset_of, device_of
    from regraft.training.evaluate import evaluate
    from regraft.training.load import load
    from regraft.training.recipe import override

    if given.batch < 1:
        raise UsageError(f"batch is {given.batch}: give at least 1")
    loaded = load(given.folder, given.which)
    recipe = override(loaded.recipe, {"training.device": "auto"})  # it may have been trained on another machine
    device = device_of(recipe)
    model = loaded.model.to(device)
    execute(model, loaded.topology)
    batches = list(plain_batches(dataset_of(recipe).test, given.batch))
    with arithmetic(device, loaded.precision):
        found = evaluate(model, batches)
    print(f"accuracy {found.accuracy:.4f} on {found.samples} test samples ({given.which}), loss {found.loss:.4f}\n")
    print(measure(model, batches, topology=loaded.topology))
    return 0
