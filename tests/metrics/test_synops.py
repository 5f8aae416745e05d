"""Synaptic operations against a plain loop over spikes and connections (method, section 6, item 13)."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regraft.metrics import measure, operations
from regraft.metrics.synops import MOST_SPIKES

_spec = importlib.util.spec_from_file_location("plain_loop", Path(__file__).with_name("plain_loop.py"))
plain_loop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain_loop)


@st.composite
def convolutions(draw):
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    transposed = draw(st.sampled_from([False, False, True]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)))
    stride = tuple(draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)))
    dilation = tuple(draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes)))
    padding = tuple(draw(st.lists(st.integers(0, 3), min_size=axes, max_size=axes)))
    settings_ = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    if transposed:
        settings_["output_padding"] = tuple(min(1, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    elif stride == (1,) * axes and draw(st.booleans()):
        settings_["padding"] = draw(st.sampled_from(["same", "valid"]))
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    torch.manual_seed(draw(st.integers(0, 10_000)))
    layer = kind(groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), kernel, **settings_)
    size = draw(st.lists(st.integers(5, 6 if axes < 3 else 5), min_size=axes, max_size=axes))
    x = torch.randint(0, draw(st.sampled_from([2, 2, 4])), (2, layer.in_channels, *size)).float()
    mask = torch.rand(layer.weight.shape) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    try:
        layer(x)
    except RuntimeError:  # a kernel larger than the padded input
        return draw(convolutions())
    return layer, mask, x


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_convolutions_equal_the_plain_loop(case):
    layer, mask, x = case
    got = measure(layer, [x], topology={"weight": mask})
    assert type(got.acs) is int
    assert got.acs == plain_loop.count(layer, mask, x)
    assert got.macs == got.macs_nonzero == 0
    pixels = x + 0.25  # nothing of it is a whole number
    pixels[x == 0] = 0
    pixels[0, 0].view(-1)[0] = 0.5
    got = measure(layer, [pixels], topology={"weight": mask})
    assert got.acs == 0
    assert got.macs == plain_loop.count(layer, mask, pixels, lambda value: 1)
    assert got.macs_nonzero == plain_loop.count(layer, mask, pixels, lambda value: value != 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_linear_equals_the_plain_loop(inputs, outputs, seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(inputs, outputs), torch.randint(0, 3, (3, 2, inputs)).float()
    mask = torch.rand(outputs, inputs) < 0.5
    assert measure(layer, [x], topology={"weight": mask}).acs == plain_loop.count(layer, mask, x)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_that_copies_values_does_arrive(mode):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=(2, 1), stride=2, padding_mode=mode)
    x = torch.randint(0, 2, (2, 2, 5, 6)).float()
    padded = F.pad(x, (1, 1, 2, 2), mode=mode)
    bare = nn.Conv2d(2, 3, 3, stride=2)
    mask = torch.rand(layer.weight.shape) < 0.5
    assert measure(layer, [x], topology={"weight": mask}).acs == plain_loop.count(bare, mask, padded)


class Residual(nn.Module):
    """A residual network whose second block gets sums of spikes, 0 to 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(4, 4, 1, bias=False)
        self.late = nn.Conv2d(4, 4, 3, stride=2, groups=2)
        self.pool = nn.AvgPool2d(2)
        self.readout = nn.Linear(4, 3)

    def forward(self, x):
        spikes = (self.stem(x) > 0.1).float()
        summed = (self.branch(spikes) > -0.1).float() + (self.shortcut(spikes) > -0.1).float()
        late = (self.late(summed) > 0).float()
        return self.readout(self.pool(late).flatten(1))


def test_residual_network_equals_the_plain_loop_layer_by_layer():
    torch.manual_seed(1)
    model = Residual()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    masks = {f"{name}.weight": torch.rand_like(m.weight) < 0.4 for name, m in layers.items()}
    for name, m in layers.items():
        m.weight.data *= masks[f"{name}.weight"]
    heard = {}
    for name, m in layers.items():
        m.register_forward_pre_hook(lambda _, args, name=name: heard.setdefault(name, []).append(args[0].clone()))
    masks["late.weight"][:, :, 1, 1] = True  # sums of spikes do meet a connection
    images = [torch.rand(3, 1, 7, 7), torch.rand(2, 1, 7, 7)]
    got = {row.name: row for row in measure(model, images, topology=masks).operations}
    assert all((x == 2).float().mean() > 0.2 for x in heard["late"])
    for name in ("branch", "shortcut", "late"):
        truth = sum(plain_loop.count(layers[name], masks[f"{name}.weight"], x) for x in heard[name][:2])
        assert truth > 0
        assert (got[name].acs, got[name].macs) == (truth, 0)
    for name in ("stem", "readout"):
        truth = sum(plain_loop.count(layers[name], masks[f"{name}.weight"], x, lambda v: 1) for x in heard[name][:2])
        assert (got[name].acs, got[name].macs) == (0, truth)


def test_absent_connections_cost_nothing_and_a_grown_zero_costs_what_others_do():
    layer, x = nn.Linear(4, 3), torch.ones(2, 4)
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    assert measure(layer, [x], topology={"weight": nothing}).acs == 0
    layer.weight.data.zero_()
    layer.weight.data[0, 0] = 1.0
    assert measure(layer, [x]).acs == 2
    grown = nothing.clone()
    grown[0, 0] = grown[1, 2] = True  # [1, 2] exists, its weight is 0
    assert measure(layer, [x], topology={"weight": grown}).acs == 4


def test_exact_where_float32_is_not():
    width = 4097
    layer = nn.Linear(width, width, bias=False)
    layer.weight.data.fill_(1.0)
    assert measure(layer, [torch.ones(1, width)]).acs == width * width  # odd and above 2**24
    small = nn.Linear(1, 1)
    assert operations(small, torch.ones(1, 1, dtype=torch.bool), torch.tensor([2**53 + 1]), ()) == 2**53 + 1
    conv = nn.Conv2d(1, 1, 1)
    got = operations(conv, torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.tensor([[[2**53 + 1]]]), (1, 1))
    assert got == 2**53 + 1


@pytest.mark.parametrize(
    ("value", "spikes"),
    [(0.0, True), (1.0, True), (float(MOST_SPIKES), True), (MOST_SPIKES + 1.0, False), (-1.0, False), (0.5, False),
     (float("nan"), False)],
)  # fmt: skip
def test_what_counts_as_spikes(value, spikes):
    x = torch.ones(1, 4)
    x[0, 0] = value
    layer = nn.Linear(4, 2)
    got = measure(layer, [x])
    assert (got.macs == 0) == spikes
    assert got.acs == (int(3 + value) * 2 if spikes else 0)


def test_leading_axes_of_time_and_batch_are_summed():
    layer = nn.Conv2d(2, 3, 3)
    x = torch.randint(0, 2, (2, 3, 2, 4, 4)).float()

    class Multistep(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    module = Multistep(2, 3, 3)
    got = measure(module, [(x, torch.zeros(3))], steps=2)
    flat = plain_loop.count(layer, torch.ones_like(layer.weight).bool(), x.flatten(0, 1))
    assert got.acs == flat
    assert got.samples == 3
    assert got.operations[0].repeats == 1
    assert got.operations[0].positions == 4
    square = measure(module, [(x[:, :2], torch.zeros(2))], steps=2)  # T = N: still not computed once
    assert square.operations[0].repeats == 1


def test_the_figures_do_not_depend_on_the_batch_size():
    layer = nn.Linear(2, 3)
    rates = torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the second and third could pass for spikes
    layer.weight.data.fill_(1.0)
    whole = measure(layer, [rates])
    singly = measure(layer, list(rates.split(1)))
    backwards = measure(layer, list(rates.flip(0).split(1)))
    for got in (whole, singly, backwards):
        assert (got.acs, got.macs, got.macs_nonzero) == (0, 18, 9)


def test_all_shapes_of_one_layer_are_kept_apart():
    layer = nn.Conv2d(1, 1, 3, padding=1)
    sizes = list(itertools.product([3, 4], [5, 6]))
    data = [torch.ones(1, 1, *size) for size in sizes]
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    assert measure(layer, data).acs == sum(plain_loop.count(layer, mask, x) for x in data)
