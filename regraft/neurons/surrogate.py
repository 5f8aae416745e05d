"""Surrogate gradients: what the backward pass uses in place of the derivative of the step function.

Each surrogate is a frozen dataclass with two pure functions of `z = u - threshold`: a smooth `primitive`, which the
step function is imagined to be, and its exact `derivative` h(z), which the backward pass multiplies with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from regraft.errors import UsageError, nearest


class Surrogate(Protocol):
    """Anything with these two methods serves as a surrogate."""

    def primitive(self, z: Tensor) -> Tensor:
        """The smooth function whose derivative is used; same shape as `z`."""
        ...

    def derivative(self, z: Tensor) -> Tensor:
        """d primitive / d z; same shape as `z`."""
        ...


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"surrogate {name} is {value}: give a finite number above 0")


@dataclass(frozen=True)
class Triangle:
    """h(z) = max(0, 1 - |z|/width)/width. Primitive: a piecewise parabola from 0 to 1. (Bellec et al. 2018)"""

    width: float = 1.0

    def __post_init__(self) -> None:
        _positive("width", self.width)

    def primitive(self, z: Tensor) -> Tensor:
        r = (z / self.width).clamp(-1, 1)
        return 0.5 + r - 0.5 * r * r.abs()

    def derivative(self, z: Tensor) -> Tensor:
        return (1 - z.abs() / self.width).clamp_min(0) / self.width


@dataclass(frozen=True)
class Rectangle:
    """h(z) = 1/width for |z| < width/2, else 0. Primitive: a ramp from 0 to 1. (Wu et al. 2018, STBP)"""

    width: float = 1.0

    def __post_init__(self) -> None:
        _positive("width", self.width)

    def primitive(self, z: Tensor) -> Tensor:
        return (z / self.width + 0.5).clamp(0, 1)

    def derivative(self, z: Tensor) -> Tensor:
        return (z.abs() < self.width / 2).to(z.dtype) / self.width


@dataclass(frozen=True)
class Atan:
    """h(z) = a/2 / (1 + (pi/2 a z)^2). Primitive: arctan(pi/2 a z)/pi + 1/2. (Fang et al. 2021)"""

    sharpness: float = 2.0

    def __post_init__(self) -> None:
        _positive("sharpness", self.sharpness)

    def primitive(self, z: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.sharpness * z) / math.pi + 0.5

    def derivative(self, z: Tensor) -> Tensor:
        return self.sharpness / 2 / (1 + (math.pi / 2 * self.sharpness * z).square())


@dataclass(frozen=True)
class Sigmoid:
    """h(z) = a sig(a z)(1 - sig(a z)). Primitive: sig(a z)."""

    sharpness: float = 4.0

    def __post_init__(self) -> None:
        _positive("sharpness", self.sharpness)

    def primitive(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.sharpness * z)

    def derivative(self, z: Tensor) -> Tensor:
        p = torch.sigmoid(self.sharpness * z)
        return self.sharpness * p * (1 - p)


SURROGATES: dict[str, type[Triangle] | type[Rectangle] | type[Atan] | type[Sigmoid]] = {
    "triangle": Triangle,
    "rectangle": Rectangle,
    "atan": Atan,
    "sigmoid": Sigmoid,
}


def surrogate(name_or_object: str | Surrogate) -> Surrogate:
    """The surrogate of that name with its default shape, or the object itself.

    Raises `UsageError` for an unknown name.
    """
    if not isinstance(name_or_object, str):
        return name_or_object
    if name_or_object not in SURROGATES:
        raise UsageError(f"no surrogate is called {name_or_object!r}: {nearest(name_or_object, SURROGATES)}")
    return SURROGATES[name_or_object]()


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate = surrogate
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(z), None


def spike(z: Tensor, surrogate: Surrogate) -> Tensor:
    """1 where `z >= 0`, else 0, in the dtype of `z`; backward multiplies with `surrogate.derivative(z)`."""
    return _Spike.apply(z, surrogate)  # pyright: ignore[reportReturnType]
