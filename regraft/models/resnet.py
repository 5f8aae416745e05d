"""Residual networks of the spiking literature: the ResNet-19 of tdBN and TET, and a small one for a processor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from regraft.models.network import Neuron, SpikingNetwork, conv_bn, initialise
from regraft.neurons import LIF


class BasicBlock(nn.Module):
    """conv-BN-neuron-conv-BN plus the shortcut, and the neuron after the addition; `[N, C, H, W]` to `[N, C', H', W']`.

    The shortcut is the identity, or a 1x1 convolution with normalisation where shape changes (He et al. 2016).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, neuron: Neuron) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, stride=stride)
        self.neuron1 = neuron()
        self.conv2, self.bn2 = conv_bn(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, kernel=1, stride=stride))
        self.neuron2 = neuron()

    def forward(self, x: Tensor) -> Tensor:
        out = self.neuron1(self.bn1(self.conv1(x)))
        return self.neuron2(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet19(
    *,
    classes: int = 100,
    channels: int = 3,
    size: int = 32,
    steps: int = 4,
    neuron: Neuron = LIF,
    static: bool = True,
    stem: int = 64,
    widths: Sequence[int] = (128, 256, 512),
    blocks: Sequence[int] = (3, 3, 2),
    hidden: int = 256,
) -> SpikingNetwork:
    """ResNet-19 as in tdBN (Zheng et al. 2021) and TET (Deng et al. 2022).

    conv3x3 - [3, 3, 2] basic blocks of widths 128, 256, 512 at strides 1, 2, 2 - global average - FC 256 - neuron - FC.
    The first stage keeps 32x32 maps; networks of the same name with stride 2 there do a quarter of the work and are
    not comparable. The stem has 64 channels as in TET's released code: the 12.63 M parameters that the literature
    quotes at K = 10 (12.65 M at K = 100). `stem=128` is the text's reading (12.70 M, 12.72 M).

    Normalisation is plain `BatchNorm2d` on the folded batch `[T*N, ...]`, as TET uses it; tdBN's factor
    alpha * threshold is left out.

    Args:
        classes: K.
        channels: C of the input.
        size: H and W of the input.
        steps: T; an ANN twin on images (`neuron=nn.ReLU`) has 1 whatever is given.
        neuron: makes one neuron.
        static: images `[N, C, H, W]`, else events `[T, N, C, H, W]`. Logits are `[T, N, K]` either way.
        stem: channels of the first convolution.
        widths: channels of each stage.
        blocks: basic blocks of each stage.
        hidden: width of the linear layer before the read-out.
    """
    classifier = nn.Sequential(nn.Linear(widths[-1], hidden), neuron(), nn.Linear(hidden, classes))
    features = _features(channels, stem, widths, blocks, neuron)
    network = SpikingNetwork(features, classifier, input_shape=(channels, size, size), steps=steps, static=static)
    initialise(network)
    return network


def resnet_small(
    *,
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    steps: int = 4,
    neuron: Neuron = LIF,
    static: bool = True,
    widths: Sequence[int] = (32, 64, 128),
    blocks: Sequence[int] = (1, 1, 1),
) -> SpikingNetwork:
    """A residual network that a processor can train on CIFAR: conv3x3 - one block a stage - global average - FC.

    Stages as in `resnet19` (strides 1, 2, 2); arguments too. The stem is as wide as the first stage.
    """
    features = _features(channels, widths[0], widths, blocks, neuron)
    classifier = nn.Linear(widths[-1], classes)
    network = SpikingNetwork(features, classifier, input_shape=(channels, size, size), steps=steps, static=static)
    initialise(network)
    return network


def _features(channels: int, stem: int, widths: Sequence[int], blocks: Sequence[int], neuron: Neuron) -> nn.Sequential:
    """Stem, stages and global average: `[N, C, H, W]` to `[N, widths[-1]]`."""
    features = nn.Sequential()
    features.add_module("stem", nn.Sequential(*conv_bn(channels, stem), neuron()))
    width = stem
    for index, (outputs, count) in enumerate(zip(widths, blocks, strict=True)):
        stage = nn.Sequential()
        for block in range(count):
            stride = 2 if index > 0 and block == 0 else 1
            stage.append(BasicBlock(width, outputs, stride=stride, neuron=neuron))
            width = outputs
        features.add_module(f"stage{index + 1}", stage)
    features.add_module("pool", nn.AdaptiveAvgPool2d(1))
    features.add_module("flatten", nn.Flatten())
    return features
