"""The shell around each network of this room: checks what comes in, folds time into the batch and unfolds it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import ShapeError
from regraft.neurons import fold, set_steps

Neuron = Callable[[], nn.Module]
"""Makes one neuron: a class or a `functools.partial` of one; `nn.ReLU` makes the ANN twin."""


class SpikingNetwork(nn.Module):
    """`features` then `classifier`, both on time-folded tensors.

    Input: images `[N, C, H, W]` if `static`, else events `[T, N, C, H, W]`. Output: logits `[T, N, K]`.
    If `static`, the first neuron sees its input T times, so the layers before it are computed once for each image.
    The neurons hold T; `regraft.neurons.set_steps(network, steps)` changes it. Without spiking neurons (the ANN twin)
    T is 1 for images, and each frame of events is seen by itself.

    Args:
        features: layers up to the flat features; the first neuron of the network is in here.
        classifier: features `[T*N, F]` to logits `[T*N, K]`.
        input_shape: `(C, H, W)` of one image or one frame.
        steps: T.
        static: takes images, not events.

    Raises:
        ShapeError: for an input that is not what the network was built for.
    """

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Module,
        *,
        input_shape: tuple[int, int, int],
        steps: int,
        static: bool,
    ) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.input_shape = input_shape
        self.takes_events = not static
        set_steps(self, steps)
        first: Any = next((module for module in self.modules() if hasattr(module, "static")), None)
        if first is not None:
            first.static = static

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        batch = x.shape[-4]
        folded = fold(x) if self.takes_events else x
        folded = folded.contiguous(memory_format=torch.channels_last)  # the layout that convolutions run best in
        logits: Tensor = self.classifier(self.features(folded))
        return logits.unflatten(0, (-1, batch))

    def _check(self, x: Tensor) -> None:
        axes = ("T", "N", "C", "H", "W") if self.takes_events else ("N", "C", "H", "W")
        if x.dim() != len(axes):
            kind = "events" if self.takes_events else "images"
            raise ShapeError(
                f"the input has shape {list(x.shape)}: this network takes {kind} [{', '.join(axes)}] "
                f"(build it with static={self.takes_events} for the other kind)"
            )
        if tuple(x.shape[-3:]) != self.input_shape:
            raise ShapeError(
                f"the input has [C, H, W] = {list(x.shape[-3:])}: this network was built for {list(self.input_shape)}, "
                f"give channels= and size= of the data when building it"
            )
        steps = next((module.steps for module in self.modules() if hasattr(module, "steps")), None)
        if self.takes_events and steps is not None and x.shape[0] != steps:
            raise ShapeError(
                f"the events have {x.shape[0]} time steps but the neurons {steps}: integrate the events into {steps} "
                f"frames, or build with steps={x.shape[0]}, or call regraft.neurons.set_steps(network, {x.shape[0]})"
            )

    def extra_repr(self) -> str:
        channels, height, width = self.input_shape
        return f"{'events' if self.takes_events else 'images'} {channels}x{height}x{width}"


def conv_bn(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A padded convolution without bias and the batch normalisation behind it; `[N, C, H, W]` to `[N, C', H', W']`."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def initialise(network: nn.Module) -> None:
    """Kaiming-normal weights (fan-in, gain sqrt 2) and zero biases, drawn from torch's global generator.

    With batch normalisation behind each convolution the gain matters only where there is none, in the linear layers:
    there it keeps the current large enough to reach the threshold from sparse spikes (He et al. 2015).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
