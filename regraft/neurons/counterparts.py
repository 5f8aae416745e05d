"""What a neuron of another library has for a counterpart here: one number a layer, a threshold, a surrogate.

The details behind `convert`. Objects are recognised by class name, so no other library is imported.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn

from regraft.errors import UsageError
from regraft.neurons.surrogate import Atan, Rectangle, Sigmoid, Surrogate, Triangle

_GAIN_TOLERANCE = 1e-5  # NIR files often hold float32: R * dt / tau then meets 1 only to rounding


def require_class(node: Any, library: str, *names: str) -> None:
    """A `UsageError` unless `node` is of exactly one of these classes: a subclass may compute anything."""
    module, name = type(node).__module__, type(node).__name__
    if module.split(".")[0] != library or name not in names:
        raise UsageError(
            f"from_{library} takes {library}'s {', '.join(names)}, not {module}.{name}: "
            f"other neurons (and subclasses) compute something else; build the regraft neuron by hand"
        )


def scalar(value: Any, name: str) -> float:
    """The one number that `value` (number, tensor or array) holds, or a `UsageError` if there are several."""
    if isinstance(value, nn.Parameter) and value.requires_grad:
        raise UsageError(
            f"{name} is learnt there and fixed here: call requires_grad_(False) on it to keep its present value "
            f"(what regraft learns is the decay of a PLIF)"
        )
    if value is None:
        raise UsageError(f"{name} is not set: give it a number")
    values = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
    if values.numel() == 0 or not bool((values == values[0]).all()):
        raise UsageError(
            f"{name} differs from unit to unit: a regraft neuron has one value a layer; make them equal, "
            f"or split the layer"
        )
    return float(values[0])


def neighbour(value: float, towards: float) -> float:
    """The float32 number next to `value` in the direction of `towards`."""
    single = torch.tensor([value, towards], dtype=torch.float32)
    return float(torch.nextafter(single[0], single[1]))


def just_above(threshold: float) -> float:
    """The threshold that fires at `u >=` it exactly where `u > threshold`, for every float32 `u`."""
    return neighbour(threshold, math.inf)


def above_rest(threshold: float, rest: float) -> float:
    """The threshold seen from rest; a `UsageError` unless it lies above."""
    if not threshold > rest:
        raise UsageError(f"the threshold {threshold} is not above the resting value {rest}: such a neuron always fires")
    return threshold - rest


def require_dt(dt: float) -> None:
    """A `UsageError` unless `dt` is a positive length of time."""
    if not (math.isfinite(dt) and dt > 0):
        raise UsageError(f"dt is {dt}: give the length of a time step, above 0")


def require_gain(gain: float, allowed: tuple[float, ...], remedy: str) -> float:
    """The allowed gain that `gain` meets to rounding, or a `UsageError` that says what to scale."""
    for value in allowed:
        if math.isclose(gain, value, rel_tol=_GAIN_TOLERANCE):
            return value
    raise UsageError(
        f"the input gain is {gain:g}, and regraft charges with {' or '.join(f'{value:g}' for value in allowed)}: "
        f"multiply weights and bias of the layer before by {gain:g} and {remedy}"
    )


def chosen(given: str | Surrogate | None, own: Surrogate | None, name: str) -> str | Surrogate:
    """The surrogate asked for, else the counterpart of the neuron's own, else a `UsageError`."""
    if given is not None:
        return given
    if own is None:
        raise UsageError(f"{name} has no counterpart among our surrogates: choose one with surrogate='triangle'")
    return own


def of_spikingjelly(function: Any) -> Surrogate | None:
    """The same derivative here as that of a SpikingJelly surrogate, if there is one."""
    kind = type(function).__name__ if type(function).__module__.startswith("spikingjelly.") else ""
    if kind == "ATan":
        return Atan(float(function.alpha))
    if kind == "Sigmoid":
        return Sigmoid(float(function.alpha))
    if kind == "PiecewiseQuadratic":  # alpha - alpha^2 |z| within 1/alpha
        return Triangle(1 / float(function.alpha))
    if kind == "Rect":
        return Rectangle(1 / float(function.alpha))
    if kind == "PiecewiseLeakyReLU" and function.c == 0:  # 1/(2w) within w
        return Rectangle(2 * float(function.w))
    return None


def of_snntorch(function: Any) -> tuple[Surrogate | None, str]:
    """The same derivative here as that of a snnTorch surrogate, if there is one, and the name of theirs."""
    # They are closures over their one number: `atan.<locals>.inner` over `alpha`.
    name = getattr(function, "__qualname__", repr(function)).split(".")[0]
    if getattr(function, "__module__", "") != "snntorch.surrogate" or name not in ("atan", "sigmoid"):
        return None, name
    values = inspect.getclosurevars(function).nonlocals
    return (Atan(float(values["alpha"])) if name == "atan" else Sigmoid(float(values["slope"]))), name
