"""Fused segments against the modules they replace: exactly in double precision, away from the threshold in single."""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regraft.execution.engines import engine
from regraft.execution.fire import fire_of
from regraft.execution.fused import segment
from regraft.neurons import IF, LIF, PLIF, multistep
from regraft.neurons.surrogate import Atan, Rectangle, Sigmoid, Surrogate, Triangle

pytestmark = pytest.mark.skipif(engine("cpu") is None, reason="the kernels were not built: a C compiler is missing")

SURROGATES: list[Surrogate] = [Triangle(), Triangle(0.5), Atan(), Rectangle(1.5), Sigmoid()]


@dataclass(frozen=True)
class Case:
    """One segment over made-up currents."""

    steps: int = 4
    batch: int = 3
    channels: int = 5
    size: tuple[int, ...] = (6, 4)
    last: bool = True
    terms: str = "n"  # a letter each: n for a normalised one, p for a plain one
    pool: bool = False
    static: bool = False
    training: bool = True
    affine: bool = True
    neuron: str = "lif"
    surrogate: int = 0
    reset: Any = "hard"
    subtract: float | None = None
    detach: bool = True
    decay_input: bool = False

    def make(self, dtype: torch.dtype) -> tuple[list[Tensor], list[nn.Module | None], LIF]:
        draw = torch.Generator().manual_seed(zlib.crc32(repr(self).encode()))
        shape = ((1 if self.static else self.steps) * self.batch, self.channels, *self.size)
        inputs = [(torch.randn(shape, generator=draw) * 2).to(dtype) for _ in self.terms]
        if self.last and len(self.size) == 2:
            inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
        kind = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(self.size)]
        norms: list[nn.Module | None] = []
        for term in self.terms:
            norm: Any = kind(self.channels, affine=self.affine) if term == "n" else None
            if norm is not None:
                norm.running_mean.copy_(torch.randn(self.channels, generator=draw))
                norm.running_var.copy_(torch.rand(self.channels, generator=draw) + 0.5)
                if self.affine:
                    norm.weight.data.copy_(torch.randn(self.channels, generator=draw) + 1)
                    norm.bias.data.copy_(torch.randn(self.channels, generator=draw) * 0.3)
                norm.to(torch.float64 if dtype == torch.float64 else torch.float32).train(self.training)
            norms.append(norm)
        rest: dict[str, Any] = {"surrogate": SURROGATES[self.surrogate], "reset": self.reset}
        rest |= {"detach_reset": self.detach, "steps": self.steps, "static": self.static, "subtract": self.subtract}
        if self.neuron == "if":
            return inputs, norms, IF(**rest)
        neuron = (PLIF if self.neuron == "plif" else LIF)(decay_input=self.decay_input, **rest)
        return inputs, norms, neuron.to(torch.float64 if dtype == torch.float64 else torch.float32)


def by_modules(case: Case, inputs: list[Tensor], norms: list[Any], neuron: LIF) -> Tensor:
    """Normalisation, the reference recursion and pooling as separate functions of autograd."""
    x = sum(y if norm is None else norm(y) for y, norm in zip(inputs, norms, strict=True))
    assert isinstance(x, Tensor)
    current = x.expand(case.steps, *x.shape) if case.static else x.unflatten(0, (case.steps, -1))
    s, _ = multistep(
        current,
        decay=neuron.decay,
        threshold=neuron.threshold,
        surrogate=neuron.surrogate,
        reset=neuron.reset,
        subtract=neuron.subtract,
        detach_reset=neuron.detach_reset,
        decay_input=neuron.decay_input,
    )
    s = s.flatten(0, 1)
    return nn.functional.max_pool2d(s, 2) if case.pool else s


def fused(case: Case, inputs: list[Tensor], norms: list[Any], neuron: LIF) -> Tensor:
    how = fire_of(neuron)
    assert how is not None
    return segment(how, neuron.decay, inputs, norms, case.pool)


def results(function: Any, case: Case, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Spikes, and by name every gradient and every statistic."""
    inputs, norms, neuron = case.make(dtype)
    for x in inputs:
        x.requires_grad_()
    spikes = function(case, inputs, norms, neuron)
    onto = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    (spikes * onto).sum().backward()
    found = {f"input {i}": x.grad for i, x in enumerate(inputs)}
    for i, norm in enumerate(norms):
        if norm is not None:
            found |= {f"{name} {i}": p.grad for name, p in norm.named_parameters()}
            found |= {f"{name} {i}": b for name, b in norm.named_buffers()}
    found |= {name: p.grad for name, p in neuron.named_parameters()}
    return spikes.detach(), found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.sampled_from([0, 1, 2, 2, 2, 3]))
    pool = dims == 2 and draw(st.booleans())
    sides = st.integers(1, 9)
    size = tuple(2 * draw(st.integers(1, 4)) if pool else draw(sides) for _ in range(dims))
    neuron = draw(st.sampled_from(["lif", "plif", "if"]))
    reset = draw(st.sampled_from(["hard", "soft"]))
    static = draw(st.booleans())
    return Case(
        steps=draw(st.sampled_from([1, 2, 3, 4, 5, 16, 64])),
        batch=draw(st.integers(2, 4)),
        channels=draw(st.sampled_from([1, 2, 3, 8, 17, 63, 64, 65, 130])),
        size=size,
        last=pool or draw(st.booleans()),
        terms=draw(st.sampled_from(["n", "p", "nn", "np", "pn", "pp"])),
        pool=pool,
        static=static,
        training=draw(st.booleans()),
        affine=draw(st.booleans()),
        neuron=neuron,
        surrogate=draw(st.integers(0, len(SURROGATES) - 1)),
        reset=reset,
        subtract=draw(st.sampled_from([None, 0.4])) if reset == "soft" else None,
        detach=draw(st.booleans()),
        decay_input=neuron != "if" and draw(st.booleans()),
    )


@settings(max_examples=120, deadline=None)
@given(cases())
@example(Case(batch=200, channels=3, size=(2, 3), last=False, terms="nn"))  # more planes than tasks times channels
@example(Case(batch=40, channels=3, size=(8, 8), pool=True, neuron="plif"))
@example(Case(batch=300, channels=70, size=(), steps=2, terms="np"))
def test_in_double_precision_nothing_differs(case):
    expected, those = results(by_modules, case, torch.float64)
    spikes, these = results(fused, case, torch.float64)
    assert torch.equal(spikes, expected)
    assert these.keys() == those.keys()
    for name, value in those.items():
        found = these[name]
        if value is None or found is None:  # a decay that nothing decays
            assert not any(one is not None and bool(one.any()) for one in (value, found)), name
        else:
            # The sums of a term that is 1e3 times its channel's deviation cancel.
            assert torch.allclose(found.to(value), value, rtol=1e-9, atol=1e-9 * (1 + float(value.abs().max()))), name


FEW = [
    Case(),
    Case(pool=True, channels=48, size=(8, 8)),
    Case(steps=16, terms="nn", surrogate=2),
    Case(last=False, channels=40, size=(9, 9)),
    Case(static=True, neuron="plif", decay_input=True, surrogate=4),
    Case(reset="soft", detach=False, terms="np", surrogate=3),
    Case(size=(), channels=70, terms="p", steps=5),
    Case(neuron="plif", steps=7, pool=True, channels=65),
]


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_single_and_half_precision_it_is_as_near_as_can_be(case, dtype):
    """By the double-precision modules on the same, rounded inputs; gradients where the spikes are the same."""
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    inputs, norms, neuron = case.make(dtype)
    wide = [x.double().requires_grad_() for x in inputs]
    norms64 = [None if norm is None else copy.deepcopy(norm).double() for norm in norms]
    expected = by_modules(case, wide, norms64, copy.deepcopy(neuron).double())
    near = [x.requires_grad_() for x in inputs]
    spikes = fused(case, near, norms, neuron)
    assert spikes.dtype == dtype
    differ = (spikes.double() != expected).double().mean()
    assert differ <= 1e-3, "only what lies at the threshold may differ"
    if differ:
        pytest.skip("a membrane lies at the threshold: its gradients are another network's")
    onto = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    (spikes * onto).sum().backward()
    (expected * onto.double()).sum().backward()
    for x, y in zip(near, wide, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert x.grad.dtype == dtype
        error = (x.grad.double() - y.grad).abs().max() / y.grad.abs().max()
        assert error <= tolerance


def test_half_precision_rounds_to_the_nearest():
    """What is stored, once: the same numbers as in single precision, and what is not a number stays so."""
    inputs, _, neuron = Case(terms="p", surrogate=2).make(torch.bfloat16)
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        x = inputs[0].to(dtype).requires_grad_()
        fused(Case(terms="p"), [x], [None], neuron).sum().backward()
        assert x.grad is not None
        grads.append(x.grad.bfloat16())
    assert torch.equal(*grads)
    assert len(grads[0].unique()) > 100
    case = Case(surrogate=2, affine=True, training=False)
    inputs, norms, neuron = case.make(torch.bfloat16)
    norm: Any = norms[0]
    norm.weight.data.view(torch.int32)[1] = 0x7FFFFFFF  # whose bits overflow when they are rounded
    fused(case, [inputs[0].requires_grad_()], norms, neuron).sum().backward()
    assert inputs[0].grad is not None
    assert bool(inputs[0].grad[:, 1].isnan().all())
    assert bool(inputs[0].grad[:, 2:].isfinite().all())


@pytest.mark.parametrize("last", [True, False])
def test_many_rows_are_not_summed_in_single_precision(last):
    """A million equal numbers, all rounded to the same side."""
    rows = 1_500_000
    y = torch.full((), 0.3).expand(1500, 3, 50, 20)
    y = y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    norm = nn.BatchNorm2d(3).eval()
    fused(Case(steps=1), [y], [norm], LIF(surrogate=Atan())).sum().backward()
    assert norm.bias.grad is not None
    each = Atan().derivative(torch.tensor(0.3, dtype=torch.float64) / (1 + norm.eps) ** 0.5 - 1)
    assert torch.allclose(norm.bias.grad.double(), rows * each, rtol=1e-6)


def test_far_from_the_threshold_a_sigmoid_lets_nothing_through():
    x = torch.tensor([[-1e4, -300.0, 1.5, 300.0, 1e4, 3e38, -3e38]]).requires_grad_()
    fused(Case(steps=1), [x], [None], LIF(surrogate=Sigmoid())).sum().backward()
    expected = Sigmoid().derivative(x.detach() - 1)
    assert x.grad is not None
    assert torch.allclose(x.grad, expected, atol=1e-30)


def test_it_keeps_its_inputs_and_nothing_of_their_size():
    """What a training's memory grows by with T: the convolution's output. The plain graph keeps ten times that."""
    case = Case(steps=8, channels=32, size=(16, 16))
    inputs, norms, neuron = case.make(torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused(case, [x.requires_grad_() for x in inputs], norms, neuron)
    assert [n for n in kept.values() if n > 1000] == [inputs[0].numel()]


@pytest.mark.parametrize("last", [True, False])
def test_the_memory_order_is_kept_without_a_copy(last):
    case = Case(channels=16, size=(8, 8), last=last)
    inputs, norms, neuron = case.make(torch.float32)
    spikes = fused(case, [x.requires_grad_() for x in inputs], norms, neuron)
    spikes.sum().backward()
    form = torch.channels_last if last else torch.contiguous_format
    assert spikes.is_contiguous(memory_format=form)
    assert inputs[0].grad is not None
    assert inputs[0].grad.is_contiguous(memory_format=form)


def test_the_number_of_threads_changes_no_bit():
    """Sums are cut by shape, not by who computes them."""
    case = Case(steps=4, batch=8, channels=40, size=(12, 12), terms="nn", neuron="plif")
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            spikes, rest = results(fused, case, torch.float32)
            found.append([spikes, *(value for value in rest.values() if value is not None)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_second_derivative_is_refused():
    inputs, norms, neuron = Case().make(torch.float32)
    spikes = fused(Case(), [x.requires_grad_() for x in inputs], norms, neuron)
    (grad,) = torch.autograd.grad(spikes.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_statistics_are_better_than_those_of_single_precision():
    """Channels far from zero: squares of large numbers would cancel."""
    from regraft.execution import native

    y = torch.randn(64, 8, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1 + 1000
    y = y.contiguous(memory_format=torch.channels_last)
    found = native.moments(y, None, None, 0.0, 0.0, (None, None))
    var, mean = torch.var_mean(y.double(), dim=(0, 2, 3), correction=0)
    assert torch.allclose(found.mean.double(), mean, rtol=1e-7)
    assert torch.allclose(found.inverse.double(), var.rsqrt(), rtol=1e-4)


def test_statistics_of_many_rows_do_not_drift():
    """Equal numbers are rounded all to the same side, and what is left of squares may even be negative."""
    from regraft.execution import native

    each = 1.4536341428756714 * 64  # its sums are rounded worst
    y = torch.zeros(300_000, 64)
    y[::2] = each
    found = native.moments(y, None, None, 1e-5, 0.0, (None, None))
    assert torch.allclose(found.inverse.double(), torch.tensor(2 / each, dtype=torch.float64), rtol=3e-6)
    y[1:], y[0] = each, 0
    found = native.moments(y, None, None, 1e-5, 0.0, (None, None))
    assert bool(found.inverse.isfinite().all())
