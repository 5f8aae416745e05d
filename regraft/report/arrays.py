"""Reading the arrays of run folders: the first layer at birth and at the end, the final wiring, the raster.

As in `runs`, all is checked here: a file that is not there gives None or nothing, a damaged one `RunError`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regraft.report.runs import Run, damaged, read_arrays

MOST_NEURONS, MOST_STEPS = 256, 4096


@dataclass(frozen=True)
class FirstLayer:
    """Weights of the first prunable layer, `[out, in, ...]` float32, NaN where there is no connection."""

    name: str
    birth: np.ndarray
    end: np.ndarray


@dataclass(frozen=True)
class Raster:
    """Spikes of some neurons of one layer for one sample: `spikes` bool `[T, n]`, their places among `of` neurons."""

    layer: str
    spikes: np.ndarray
    neurons: np.ndarray
    of: int


@dataclass(frozen=True)
class Activity:
    """The rasters of one test sample, whose class is `label` and which the network took for `answer`."""

    label: int
    answer: int
    rasters: tuple[Raster, ...]


def read_masks(run: Run) -> dict[str, np.ndarray]:
    """Which connections exist after the last whole epoch: parameter name -> bool `[out, in, ...]`, in their order.

    Empty where no network was saved. Raises `RunError` for a damaged file.
    """
    path = run.folder / "last.safetensors"
    if not path.is_file():
        return {}
    masks = {
        key.removeprefix("masks/"): value
        for key, value in read_arrays(path, lambda key: key.startswith("masks/")).items()
    }
    for name, mask in masks.items():
        if mask.dtype != np.bool_ or mask.ndim < 2 or not mask.size:
            raise damaged(path, f"the entry 'masks/{name}' is not bool [out, in, ...]")
    order = dict.fromkeys([*run.layers, *masks])
    return {name: masks[name] for name in order if name in masks}


def read_first_layer(run: Run) -> FirstLayer | None:
    """The first prunable layer before and after training; None where its weights at birth or at the end are missing.

    Raises `RunError` for damaged files.
    """
    wiring, last = run.folder / "wiring.safetensors", run.folder / "last.safetensors"
    if not (wiring.is_file() and last.is_file()):
        return None
    births = read_arrays(wiring, lambda key: key.startswith("birth/"))
    if not births:
        return None
    key, birth = next(iter(births.items()))
    name = key.removeprefix("birth/")
    found = read_arrays(last, lambda key: key in (f"model/{name}", f"masks/{name}"))
    end, mask = found.get(f"model/{name}"), found.get(f"masks/{name}")
    if birth.dtype.kind != "f" or birth.ndim < 2 or not birth.size:
        raise damaged(wiring, f"the entry {key!r} is not floating point [out, in, ...]")
    if end is None or mask is None or not end.shape == mask.shape == birth.shape or end.dtype.kind != "f":
        raise damaged(last, f"it lacks weights and mask of {name!r} in the shape that they had at birth")
    with np.errstate(over="ignore"):
        first, final = birth.astype(np.float32), end.astype(np.float32)
    absent = np.float32("nan")
    return FirstLayer(name, np.where(first == 0, absent, first), np.where(mask.astype(bool), final, absent))


def read_activity(run: Run) -> Activity | None:
    """The rasters of `activity.safetensors`, layers as the model has them; None where the run wrote none.

    Raises `RunError` for a damaged file.
    """
    path = run.folder / "activity.safetensors"
    if not path.is_file():
        return None
    found = read_arrays(path, lambda key: True)
    sample = found.get("sample")
    if sample is None or sample.shape != (2,) or sample.dtype.kind not in "iu":
        raise damaged(path, "the entry 'sample' is not [label, answer]")
    rasters = []
    for key, spikes in found.items():
        kind, _, layer = key.partition("/")
        if kind != "spikes":
            continue
        neurons, of = found.get(f"neurons/{layer}"), found.get(f"of/{layer}")
        if not (
            spikes.ndim == 2
            and spikes.size
            and spikes.dtype.kind in "bu"
            and spikes.shape[0] <= MOST_STEPS
            and spikes.shape[1] <= MOST_NEURONS
            and neurons is not None
            and neurons.dtype.kind in "iu"
            and neurons.shape == spikes.shape[1:]
            and of is not None
            and of.dtype.kind in "iu"
            and of.shape == (1,)
        ):
            raise damaged(path, f"the entry {key!r} is not spikes [T, n] with their neurons")
        rasters.append(Raster(layer, spikes != 0, neurons, int(of[0])))
    # safetensors sorts its keys; the log has the layers as the network passes them.
    order = [name for record in run.epochs[-1:] for name in record.get("rates") or {}]
    place = {name: index for index, name in enumerate(order)}
    rasters.sort(key=lambda raster: place.get(raster.layer, len(place)))
    return Activity(int(sample[0]), int(sample[1]), tuple(rasters))
