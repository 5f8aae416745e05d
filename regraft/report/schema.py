"""What the files of a run folder must hold, and what they may: each key with what its value has to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def text(value: Any, /) -> bool:
    """A string."""
    return isinstance(value, str)


def whole(value: Any, /) -> bool:
    """A whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def count(value: Any, /) -> bool:
    """A whole number from 0."""
    return whole(value) and 0 <= value < 2**53  # what every reader of JSON holds exactly


def number(value: Any, /) -> bool:
    """Any number, also one that is not finite."""
    # NaN and infinities are numbers here: a run that diverged is still a run.
    return isinstance(value, float) or whole(value)


def amount(value: Any, /) -> bool:
    """A number from 0."""
    return number(value) and 0 <= value < 1e30


def share(value: Any, /) -> bool:
    """A number from 0 to 1."""
    return number(value) and 0 <= value <= 1


def table_of(good: Check) -> Check:
    """A mapping whose values are all good."""
    return lambda value: isinstance(value, dict) and all(good(item) for item in value.values())


def list_of(good: Check) -> Check:
    """A list of good items."""
    return lambda value: isinstance(value, list) and all(good(item) for item in value)


def or_null(good: Check) -> Check:
    """Good, or nothing."""
    return lambda value: value is None or good(value)


def neuron_layer(value: Any, /) -> bool:
    """What is known of the removable neurons of a layer."""
    return (
        isinstance(value, dict)
        and text(value.get("name"))
        and all(or_null(count)(value.get(key)) for key in ("of", "removable", "constant", "silent"))
    )


def reliability(value: Any, /) -> bool:
    """A calibration: its bins, and their error."""
    if not isinstance(value, dict) or not share(value.get("ece")) or not list_of(count)(value.get("count")):
        return False
    lines = [value.get("confidence"), value.get("accuracy")]
    return all(
        isinstance(line, list) and len(line) == len(value["count"]) and list_of(or_null(share))(line) for line in lines
    )


_WORDS = {
    text: "a text", count: "a count", whole: "a whole number", number: "a number", amount: "a number of 0 or more",
    share: "a share of 1", reliability: "a reliability diagram",
}  # fmt: skip

# A key with a question mark may be missing or null: older versions did not write it.
RESULT = {
    "name": text, "seed": whole, "command": text, "test_samples": count,
    "accuracy.last": share, "accuracy.selected": share, "accuracy.selected_epoch": count,
    "accuracy.valid_last?": share, "accuracy.valid_selected?": share,
    "connections.existing": count, "connections.of": count,
    "density.connections": share, "density.parameters": share, "density.operations": share,
    "synops.acs": amount, "synops.macs": amount, "synops.macs_repeated": amount, "synops.steps": count,
    "synops.dense?.step": amount, "synops.dense?.steps": amount, "synops.dense?.acs": amount,
    "synops.dense?.macs": amount,
    "energy.joule": amount, "energy.mac_pj": amount, "energy.ac_pj": amount,
    "seconds.train": amount, "seconds.rewiring?": amount,
    "neurons?.of?": count, "neurons?.removable?": count, "neurons?.constant?": count,
    "neurons?.silent?": count, "neurons?.layers?": list_of(neuron_layer),
    "bytes?.dense": count, "bytes?.rows": count, "bytes?.bits": count,
    "teacher?.accuracy?": share, "teacher?.density?": share, "teacher?.seconds?": amount,
    "agreement?.same": share, "agreement?.both": share, "agreement?.student": share,
    "agreement?.teacher": share, "agreement?.neither": share,
    "calibration?.student?": reliability, "calibration?.teacher?": reliability,
}  # fmt: skip
LOG = {
    "birth": {"layers": table_of(lambda layer: isinstance(layer, dict)), "density": share},
    "epoch": {
        "epoch": count, "step": count, "train.loss": number, "train.accuracy": number,
        "train.label_loss?": number, "train.distill_loss?": number,
        "valid?.loss": number, "valid?.accuracy": number, "rates?": table_of(or_null(number)),
    },
    "event": {
        "step": count, "dropped": table_of(count), "grown": table_of(count), "connections": table_of(count),
        "density": share, "exploration?": share, "survival?": share,
    },
}  # fmt: skip
LAYER = {"connections": count, "of": count, "shape?": list_of(count)}


_NOTHING = object()


def lacking(record: Any, fields: Mapping[str, Check]) -> str | None:
    """The first dotted key of `fields` that `record` lacks, and what it should be; None where nothing is wrong.

    A part of a key that ends with a question mark may be missing or null, and all beneath it.
    """
    for dotted, good in fields.items():
        value, absent = record, False
        for part in dotted.split("."):
            optional, part = part.endswith("?"), part.rstrip("?")
            value = value.get(part, None if optional else _NOTHING) if isinstance(value, dict) else _NOTHING
            if absent := optional and value is None:
                break
        if not absent and not good(value):
            return f"{dotted.replace('?', '')!r} ({_WORDS.get(good, 'as documented')})"
    return None
