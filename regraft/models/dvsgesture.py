"""The DVS-Gesture network of Fang et al. 2021: five halvings of 128x128 events, two linear layers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from regraft.errors import UsageError
from regraft.models.network import Neuron, SpikingNetwork, conv_bn, initialise
from regraft.neurons import LIF

STAGES = 5
VOTERS = 10


class Vote(nn.Module):
    """Each class is the mean of its voters: spikes `[N, K*voters]` to rates in [0, 1] `[N, K]`."""

    def __init__(self, voters: int) -> None:
        super().__init__()
        self.voters = voters

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.voters)).mean(-1)

    def extra_repr(self) -> str:
        return f"voters={self.voters}"


def dvsgesture(
    *,
    classes: int = 11,
    channels: int = 2,
    size: int = 128,
    steps: int = 4,
    neuron: Neuron = LIF,
    static: bool = False,
    readout: Literal["membrane", "vote"] = "membrane",
    width: int = 128,
    hidden: int = 512,
) -> SpikingNetwork:
    """{c128k3s1-BN-neuron-MPk2s2}x5 - DP0.5 - FC512 - neuron - DP0.5 - FC (Fang et al. 2021, PLIF, table 1).

    Args:
        classes: K.
        channels: C of the input: the two polarities.
        size: H and W of the input, at least 32.
        steps: T.
        neuron: makes one neuron.
        static: images `[N, C, H, W]`; by default events `[T, N, C, H, W]`. Logits are `[T, N, K]` either way.
        readout: `membrane`: the last layer has K outputs and they are the logits of a step. `vote`, as published: it
            has 10 K outputs, a neuron follows, and a class is the mean of its ten spikes, in [0, 1].
        width: channels of each convolution.
        hidden: width of the first linear layer.

    Dropout sees the folded batch: each step has its own mask. Published code shares one mask over all steps.

    Raises:
        UsageError: for an unknown read-out, or an input too small for five times max pooling.
    """
    if readout not in ("membrane", "vote"):
        raise UsageError(f"readout is {readout!r}: give 'membrane' or 'vote'")
    side = size // 2**STAGES
    if side < 1:
        raise UsageError(f"size is {size}: {STAGES} times max pooling needs at least {2**STAGES}")
    features = nn.Sequential()
    for stage in range(STAGES):
        inputs = channels if stage == 0 else width
        features.extend([*conv_bn(inputs, width), neuron(), nn.MaxPool2d(2)])
    features.append(nn.Flatten())
    outputs = classes * VOTERS if readout == "vote" else classes
    classifier = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(width * side * side, hidden), neuron(), nn.Dropout(0.5), nn.Linear(hidden, outputs)
    )
    if readout == "vote":
        classifier.extend([neuron(), Vote(VOTERS)])
    network = SpikingNetwork(features, classifier, input_shape=(channels, size, size), steps=steps, static=static)
    initialise(network)
    return network
