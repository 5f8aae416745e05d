"""The Triton engine against batch normalisation, `multistep` and max pooling in float64. Run by `test_triton.py`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, max_pool2d

from regraft.execution import triton as engine
from regraft.execution.fire import Fire
from regraft.execution.native import Normalised
from regraft.neurons.multistep import multistep
from regraft.neurons.surrogate import Atan, Rectangle, Sigmoid, Triangle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SURROGATES = {"triangle": Triangle(0.8), "rectangle": Rectangle(1.5), "atan": Atan(1.5), "sigmoid": Sigmoid(3.0)}
SHAPES = {"triangle": 0.8, "rectangle": 1.5, "atan": 1.5, "sigmoid": 3.0}
GAP = 1e-5  # membranes nearer to the threshold than this may fall on either side of it
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """A neuron, what it sees, and the gradient of its spikes. Everything on the CPU."""

    how: Fire
    decay: float
    pool: bool
    ys: list[Tensor]  # [S*N, C, H, W], channels last
    weights: list[Tensor]  # [C], of the normalisation
    biases: list[Tensor]
    grad: Tensor  # of the spikes


def draw(how: Fire, terms: int, size: tuple[int, int], pool: bool, channels: int, dtype: torch.dtype) -> Case:
    """The first random case in which no membrane lies at the threshold."""
    for seed in itertools.count():
        g = torch.Generator().manual_seed(seed)
        ys, weights, biases = [], [], []
        for _ in range(terms):
            y = torch.randn(2 * (1 if how.repeat else how.steps), channels, *size, generator=g) * 2 + 0.7
            ys.append(y.to(dtype, memory_format=torch.channels_last))
            weights.append(torch.rand(channels, generator=g) + 0.5)
            biases.append(torch.randn(channels, generator=g) * 0.4 + 0.2)
        of_spikes = [s // 2 for s in size] if pool else size
        grad = torch.randn(2 * how.steps, channels, *of_spikes, generator=g)
        case = Case(how, 0.6, pool, ys, weights, biases, grad.to(dtype, memory_format=torch.channels_last))
        if gap(case) > GAP:
            return case
    raise AssertionError


def current(how: Fire, ys: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The normalised terms, added; float64 `[T, N, C, H, W]`."""
    parts = zip(ys, weights, biases, strict=True)
    x = torch.stack([batch_norm(y, None, None, w, b, True, 0.0, EPS) for y, w, b in parts]).sum(0)
    return x.expand(how.steps, *x.shape) if how.repeat else x.unflatten(0, (how.steps, -1))


def gap(case: Case) -> float:
    """The smallest distance of a membrane from the threshold."""
    x = current(case.how, *([t.double() for t in ts] for ts in (case.ys, case.weights, case.biases)))
    v, nearest = torch.zeros_like(x[0]), float("inf")
    for now in x:
        u = case.decay * v + ((1 - case.decay) * now if case.how.decay_input else now)
        nearest = min(nearest, float((u - case.how.threshold).abs().min()))
        v = multistep(now[None], decay=case.decay, state=v, **options(case.how))[1]
    return nearest


def options(how: Fire) -> dict:
    return {
        "threshold": how.threshold,
        "surrogate": SURROGATES[how.surrogate],
        "reset": "hard" if how.amount is None else "soft",
        "subtract": how.amount,
        "detach_reset": how.detach_reset,
        "decay_input": how.decay_input,
    }


def expected(case: Case) -> dict[str, Tensor]:
    """By autograd, in float64."""
    leaves = [[t.double().requires_grad_() for t in ts] for ts in (case.ys, case.weights, case.biases)]
    decay = torch.tensor(case.decay, dtype=torch.float64, requires_grad=True)
    spikes = multistep(current(case.how, *leaves), decay=decay, **options(case.how))[0].flatten(0, 1)
    spikes = max_pool2d(spikes, 2) if case.pool else spikes
    (spikes * case.grad.double()).sum().backward()
    results = {"spikes": spikes.detach()}
    for name, tensors in zip(("y", "weight", "bias"), leaves, strict=True):
        results |= {f"{name} {i}": t.grad for i, t in enumerate(tensors) if t.grad is not None}
    return results | ({"decay": torch.zeros(())} if decay.grad is None else {"decay": decay.grad})


def found(case: Case, *, learn: bool = False) -> dict[str, Tensor]:
    """By the engine, as a training step calls it."""
    ys, weights, biases = ([t.to(DEVICE) for t in ts] for ts in (case.ys, case.weights, case.biases))
    none = (None, None)
    terms = [engine.moments(y, w, b, EPS, 0.1, none) for y, w, b in zip(ys, weights, biases, strict=True)]
    decay = torch.tensor(case.decay, device=DEVICE) if learn else case.decay
    results = {"spikes": engine.fire(case.how, decay, terms, case.pool)}
    gx, sums, onto_decay = engine.unfire(case.how, decay, terms, case.grad.to(DEVICE), case.pool, learn)
    for i, term in enumerate(terms):
        count = term.y.numel() / term.y.shape[1]
        k0, k1 = sums[0] / count, sums[1 + i] * term.inverse.square() / count
        results[f"y {i}"] = engine.renormalise(gx, term, k0, k1, into=False)
        results |= {f"weight {i}": sums[1 + i] * term.inverse, f"bias {i}": sums[0]}
        assert results[f"y {i}"].is_contiguous(memory_format=torch.channels_last)
    for name in ("spikes", "y 0"):
        assert results[name].dtype == case.ys[0].dtype
    if onto_decay is not None:
        results["decay"] = onto_decay
    return {name: tensor.double().cpu() for name, tensor in results.items()}


def compare(case: Case, *, learn: bool = False) -> None:
    right, ours = expected(case), found(case, learn=learn)
    assert torch.equal(ours.pop("spikes"), right["spikes"])
    assert right["spikes"].any()
    assert not right["spikes"].all()
    tolerance = 1e-5 if case.ys[0].dtype == torch.float32 else 2e-2
    for name, gradient in ours.items():
        assert gradient.shape == right[name].shape, name
        scale = case.grad.numel() ** 0.5 if name == "decay" else float(right[name].abs().max())  # that sum cancels
        assert float((gradient - right[name]).abs().max()) <= tolerance * scale, name


NEURONS = [  # amount, detach_reset, decay_input, learn, surrogate, pool
    (None, True, False, False, "triangle", False),
    (None, False, True, True, "atan", True),
    (1.0, True, True, True, "sigmoid", False),
    (0.7, False, False, True, "rectangle", True),
    (None, False, False, True, "sigmoid", False),
    (0.7, False, True, False, "triangle", False),
    (None, True, True, True, "rectangle", True),
    (1.0, True, False, False, "atan", True),
]


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_every_neuron(steps, repeat, terms):
    for amount, detach, gain, learn, surrogate, pool in NEURONS[(steps + repeat + terms) % 2 :: 2]:
        how = Fire(steps, repeat, 0.9, surrogate, SHAPES[surrogate], amount, detach, gain)
        compare(draw(how, terms, (2, 6) if pool else (3, 5), pool, 5, torch.float32), learn=learn)


@pytest.mark.parametrize(("repeat", "terms", "pool"), [(False, 1, False), (False, 2, True), (True, 1, True)])
def test_more_steps_than_registers_hold(repeat, terms, pool):
    how = Fire(20, repeat, 1.0, "triangle", 0.8, None, False, True)
    compare(draw(how, terms, (2, 4), pool, 3, torch.float32), learn=True)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_bfloat16_is_storage_only(steps, pool):
    """The membrane is wider: the spikes are those of float64 even so."""
    how = Fire(steps, False, 1.0, "triangle", 0.8, 1.0, True, False)
    compare(draw(how, 2, (4, 2), pool, 7, torch.bfloat16))


@pytest.mark.parametrize(("channels", "pool", "size"), [(1, True, (10, 14)), (33, False, (7, 5)), (130, True, (4, 6))])
def test_many_tiles_of_odd_sizes(monkeypatch, channels, pool, size):
    """Several blocks of channels, several tiles a program, none of them full."""
    monkeypatch.setattr(engine, "_PROGRAMS", 2)
    how = Fire(2, False, 1.0, "atan", 1.5, None, False, True)
    compare(draw(how, 2, size, pool, channels, torch.float32), learn=True)


def test_a_term_that_is_not_normalised_and_a_gradient_that_is_not_laid_out():
    case = draw(Fire(2, False, 1.0, "atan", 1.5, None, True, False), 1, (2, 3), False, 3, torch.float32)
    y, grad = case.ys[0].to(DEVICE), case.grad.to(DEVICE)
    one, zero = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    results = []
    for term, onto in ((Normalised(y, zero, one, one, zero), grad), (Normalised(y), grad.contiguous())):
        gx, sums, _ = engine.unfire(case.how, 0.6, [term], onto, False, False)
        results.append((engine.fire(case.how, 0.6, [term], False), gx, sums))
    for dense, plain in zip(*results, strict=True):
        assert torch.equal(dense, plain)


@pytest.mark.parametrize(("batch", "channels"), [(1, 3), (1000, 130)])
def test_moments_far_from_zero(monkeypatch, batch, channels):
    """A mean 1000 deviations from 0, where the mean of squares less the squared mean keeps no digit."""
    monkeypatch.setattr(engine, "_PROGRAMS", 3)
    y = torch.randn(batch, channels) + 1000
    _, mean, inverse, scale, shift = engine.moments(y.to(DEVICE), None, None, 1e-5, 0.1, (None, None))
    right = y.double().mean(0), (y.double().var(0, correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(mean.double().cpu(), right[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(inverse.double().cpu(), right[1], rtol=1e-4, atol=0)
    assert torch.equal(scale, inverse)
    torch.testing.assert_close(shift, -mean * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_running_statistics_move_as_in_torch(dtype):
    norm = torch.nn.BatchNorm2d(7, momentum=0.3).train().to(DEVICE)
    torch.nn.init.normal_(norm.weight)
    running = [norm.running_mean.clone(), norm.running_var.clone()]
    for _ in range(2):
        y = (torch.randn(3, 7, 4, 5) * 3 + 1).to(DEVICE, dtype)
        with torch.no_grad():
            norm(y.float())
        term = engine.moments(y, norm.weight, norm.bias, norm.eps, 0.3, tuple(running))
    torch.testing.assert_close(running, [norm.running_mean, norm.running_var])
    torch.testing.assert_close(term.scale, norm.weight * term.inverse)


def test_the_same_input_gives_the_same_bits():
    case = draw(Fire(3, False, 1.0, "atan", 1.5, None, False, True), 1, (6, 6), True, 40, torch.bfloat16)
    first, second = found(case, learn=True), found(case, learn=True)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_renormalise_in_place():
    g, y = (torch.randn(2, 5, 3, 4).to(DEVICE, memory_format=torch.channels_last) for _ in range(2))
    term = Normalised(y, *torch.randn(4, 5).to(DEVICE))
    k0, k1 = torch.randn(2, 5).to(DEVICE)
    scale, mean, k0_, k1_ = (t[:, None, None] for t in (term.scale, term.mean, k0, k1))
    right = scale * (g - k0_ - k1_ * (y - mean))
    torch.testing.assert_close(engine.renormalise(g, term, k0, k1, into=False), right)
    assert not torch.allclose(g, right)
    engine.renormalise(g, term, k0, k1, into=True)
    torch.testing.assert_close(g, right)


def test_an_empty_batch():
    how, y = Fire(2, False, 1.0, "atan", 1.5, None, True, False), torch.empty(0, 3, 4, 4, device=DEVICE)
    term = engine.moments(y, None, None, EPS, 0.1, (None, None))
    assert engine.fire(how, 0.5, [term], True).shape == (0, 3, 2, 2)
    gx, sums, total = engine.unfire(how, 0.5, [term], y[:, :, :2, :2], True, True)
    assert gx.shape == y.shape
    assert not sums.any()
    assert total == 0
