"""VGG: a plain stack of convolutions, normalisations and neurons, halved by max pooling (spikes stay spikes)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from regraft.errors import UsageError
from regraft.models.network import Neuron, SpikingNetwork, conv_bn, initialise
from regraft.neurons import LIF

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def tiny_vgg(
    *,
    classes: int = 10,
    channels: int = 1,
    size: int = 8,
    steps: int = 4,
    neuron: Neuron = LIF,
    static: bool = True,
    widths: Sequence[Sequence[int]] = ((32, 32), (64,)),
    hidden: int = 128,
) -> SpikingNetwork:
    """A network of seconds for the 8x8 digits: {conv3-BN-neuron}x2 - MP2 - conv3-BN-neuron - MP2 - FC - neuron - FC.

    Args:
        classes: K.
        channels: C of the input.
        size: H and W of the input, at least 2 to the number of stages.
        steps: T; an ANN twin on images (`neuron=nn.ReLU`) has 1 whatever is given.
        neuron: makes one neuron.
        static: images `[N, C, H, W]`, else events `[T, N, C, H, W]`. Logits are `[T, N, K]` either way.
        widths: output channels of each convolution, grouped in stages; each stage ends with max pooling by 2.
        hidden: width of the linear layer before the read-out.

    Raises:
        UsageError: if the input is too small to be pooled that often.
    """
    features, flat = _stages(widths, channels=channels, size=size, neuron=neuron)
    classifier = nn.Sequential(nn.Linear(flat, hidden), neuron(), nn.Linear(hidden, classes))
    return _network(features, classifier, channels=channels, size=size, steps=steps, static=static)


def vgg16(
    *,
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    steps: int = 4,
    neuron: Neuron = LIF,
    static: bool = True,
    widths: Sequence[Sequence[int]] = VGG16,
) -> SpikingNetwork:
    """VGG16 with batch normalisation for 32x32 images: 13 convolutions and one linear read-out, 14.72 M parameters.

    As usual for CIFAR, the three linear layers of Simonyan and Zisserman 2015 are one; 14.7 M of its parameters are
    convolutions. Normalisation sees the folded batch `[T*N, ...]`. Arguments and errors as in `tiny_vgg`.
    """
    features, flat = _stages(widths, channels=channels, size=size, neuron=neuron)
    classifier = nn.Linear(flat, classes)
    return _network(features, classifier, channels=channels, size=size, steps=steps, static=static)


def _stages(widths: Sequence[Sequence[int]], *, channels: int, size: int, neuron: Neuron) -> tuple[nn.Sequential, int]:
    """The convolutional stages and the number of flat features behind them."""
    side = size // 2 ** len(widths)
    if side < 1:
        raise UsageError(f"size is {size}: {len(widths)} times max pooling needs at least {2 ** len(widths)}")
    layers: list[nn.Module] = []
    for stage in widths:
        for width in stage:
            layers += [*conv_bn(channels, width), neuron()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten()), channels * side * side


def _network(
    features: nn.Module, classifier: nn.Module, *, channels: int, size: int, steps: int, static: bool
) -> SpikingNetwork:
    network = SpikingNetwork(features, classifier, input_shape=(channels, size, size), steps=steps, static=static)
    initialise(network)
    return network
