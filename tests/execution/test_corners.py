"""Corners in which the fused path once differed from the modules, or read memory that was not its own."""

from __future__ import annotations

import copy
import ctypes
import pickle
import threading
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from regraft.errors import ShapeError
from regraft.execution import execute, keep_pages
from regraft.execution.engines import engine
from regraft.models import resnet_small
from regraft.neurons import LIF, PLIF
from regraft.neurons.spiking import spiking

needs_kernels = pytest.mark.skipif(engine("cpu") is None, reason="the kernels were not built: a C compiler is missing")
Double = torch.float64


def both(net: nn.Module, x: Tensor, *, form: Any = torch.contiguous_format) -> tuple[list[Tensor], list[Tensor]]:
    """Output, gradients and buffers of a network, as it is and executed."""
    found = []
    for other in (net, copy.deepcopy(net)):
        if other is not net:
            execute(other)
        given = x.clone(memory_format=form).requires_grad_()
        out = other(given)
        onto = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        (out * onto).sum().backward()
        grads = [torch.zeros(0) if p.grad is None else p.grad for p in (given, *other.parameters())]
        found.append([out.detach(), *grads, *other.buffers()])
    return found[0], found[1]


def assert_same(these: tuple[list[Tensor], list[Tensor]]) -> None:
    for a, b in zip(*these, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-9)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=Double) * 2


def traced(module: nn.Module) -> fx.GraphModule:
    """A graph in which every child is called as it is."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    return fx.GraphModule(module, Tracer().trace(module))


# ---- gradients ---------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Two normalised branches into one neuron, as at the shortcut of a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.neuron = nn.BatchNorm2d(3), nn.BatchNorm2d(3), LIF(steps=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.left(x) + self.right(x * 2))


def test_two_normalisations_do_not_share_one_gradient():
    """Autograd keeps a gradient as it is given: what is added to the one would be added to the other."""
    net = traced(Branches()).double()
    twin = copy.deepcopy(net)
    assert [len(s.norms) for s in execute(twin).segments] == [2]
    x = drawn(4, 3, 4, 4)
    for _ in range(3):
        for other in (net, twin):
            other(x).sum().backward()
    for other in (net, twin):
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad, q.grad)


@pytest.mark.parametrize("gone", ["weight", "bias"])
def test_a_normalisation_may_have_only_a_weight_or_only_a_bias(gone):
    net = nn.Sequential(nn.BatchNorm1d(4), LIF(steps=2)).double()
    setattr(net[0], gone, None)
    assert_same(both(net, drawn(6, 4)))


@pytest.mark.parametrize("momentum", [None, 0.0, 1.0])
@pytest.mark.parametrize("track", [True, False])
def test_statistics_move_as_they_do(momentum, track):
    net = nn.Sequential(nn.BatchNorm2d(4, momentum=momentum, track_running_stats=track), LIF(steps=2)).double()
    for training in (True, True, False):
        net.train(training).zero_grad()
        assert_same(both(net, drawn(4, 4, 3, 3)))


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (4, 1, 1, 1), (4, 5, 1, 1), (4, 5, 1, 6), (4, 1, 2, 2), (2, 70, 2, 2)])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
def test_where_two_memory_orders_are_the_same_one(shape, form):
    net = nn.Sequential(nn.BatchNorm2d(shape[1]), LIF(steps=2)).double()
    assert_same(both(net, drawn(*shape), form=form))
    if not (shape[2] % 2 or shape[3] % 2):
        net = nn.Sequential(nn.BatchNorm2d(shape[1]), PLIF(steps=2), nn.MaxPool2d(2)).double()
        assert_same(both(net, drawn(*shape), form=form))


def test_inputs_and_gradients_need_not_be_contiguous():
    net = nn.Sequential(nn.BatchNorm2d(5), PLIF(steps=2), nn.MaxPool2d(2)).double()
    twin = copy.deepcopy(net)
    execute(twin)
    whole = drawn(4, 10, 8, 8)
    for view in (whole[:, ::2, ::2, ::2], whole.transpose(2, 3)[:, :5, :4, :4], whole[:, :5].flip(3)):
        grads = []
        for other in (net, twin):
            x = view.detach().requires_grad_()
            out = other(x)
            out.sum().backward()  # an expanded gradient
            (strided,) = torch.autograd.grad(other(x).transpose(2, 3)[..., ::2].square().sum(), x)
            assert x.grad is not None
            grads.append((x.grad, strided))
        assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("turned", [0, 1])
def test_two_branches_may_come_in_different_memory_orders(turned):
    net = traced(Branches()).double()
    torch.nn.init.uniform_(net.right.weight)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.neuron = net.left, net.right, net.neuron

        def forward(self, x: Tensor) -> Tensor:
            y = x.contiguous(memory_format=torch.channels_last)
            a, b = (y, x * 2) if turned else (x, y * 2)
            return self.neuron(self.left(a) + self.right(b))

    assert_same(both(traced(Turned()), drawn(4, 3, 4, 6)))


def test_a_network_in_evaluation_gives_its_gradients_when_training_went_on():
    """The running mean has moved before the backward pass: by kernels, so that autograd cannot tell."""
    net = nn.Sequential(nn.BatchNorm1d(4), LIF(steps=2)).double()
    twin = copy.deepcopy(net)
    execute(twin)
    x = drawn(6, 4)
    net.eval()(x).sum().backward()
    out = twin.eval()(x)
    twin.train()(x * 3 + 5)
    out.sum().backward()
    assert torch.allclose(net[0].weight.grad, twin[0].weight.grad)


def test_gradients_can_be_taken_twice():
    net = nn.Sequential(nn.BatchNorm2d(4), PLIF(steps=2)).double()
    execute(net)
    x = drawn(4, 4, 3, 3).requires_grad_()
    out = net(x).sum()
    first = torch.autograd.grad(out, [x, *net.parameters()], retain_graph=True)
    second = torch.autograd.grad(out, [x, *net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_hooks_that_keep_saved_tensors_in_another_order_change_nothing():
    """As those that compress them do; the pooled kernels take nothing but channels last."""
    form = torch.channels_last
    net = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), LIF(steps=2), nn.MaxPool2d(2)).double()
    twin = copy.deepcopy(net.to(memory_format=form))
    execute(twin)
    x = drawn(4, 2, 4, 4).contiguous(memory_format=form)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().contiguous(), lambda t: t):
        out = twin(x)
    out.sum().backward()
    net(x).sum().backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_checkpointing_computes_the_same():
    net = nn.Sequential(nn.BatchNorm2d(4), PLIF(steps=2)).double()
    execute(net)
    x = drawn(4, 4, 3, 3)
    grads = []
    for call in (net, lambda x: torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)):
        given = x.clone().requires_grad_()
        call(given).square().sum().backward()
        grads.append(given.grad)
    assert torch.equal(*grads)


def test_a_learnt_decay_that_several_layers_share_gets_the_sum():
    neuron = PLIF(steps=3)
    assert_same(both(nn.Sequential(nn.Linear(4, 4), neuron, nn.Linear(4, 4), neuron).double(), drawn(6, 4)))


def test_a_thousand_steps():
    for neuron in (LIF, PLIF):
        assert_same(both(nn.Sequential(nn.BatchNorm1d(3), neuron(steps=1000)).double(), drawn(2000, 3)))


@needs_kernels
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_is(value):
    """It leaves the other places alone, and does not look like a gradient of 0."""
    net = nn.Sequential(LIF(steps=3)).double()
    x = drawn(3, 70).requires_grad_()
    with torch.no_grad():
        x[0, 5] = value
    twin = copy.deepcopy(net)
    execute(twin)
    a, b = (torch.autograd.grad(n(x).sum(), x)[0] for n in (net, twin))
    assert torch.equal(net(x), twin(x))
    assert torch.equal(torch.nan_to_num(a, 7.0), torch.nan_to_num(b, 7.0))


# ---- what the kernels may not be handed --------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["small", "elsewhere", "strided"])
def test_coefficients_that_do_not_fit_are_left_to_torch(change):
    """The kernels would read beyond them, or at no address at all."""
    net = nn.Sequential(nn.BatchNorm2d(4), LIF(steps=2))
    twin = copy.deepcopy(net)
    execute(twin)
    made = {
        "small": lambda: torch.ones(1),
        "elsewhere": lambda: torch.ones(4, device="meta"),
        "strided": lambda: torch.arange(8.0)[::2],
    }
    told = []
    for other in (net, twin):
        other[0].weight = nn.Parameter(made[change]())
        try:
            told.append(other(drawn(4, 4, 3, 3).float()).tolist())
        except RuntimeError as error:
            told.append(str(error))
    assert told[0] == told[1]


def test_one_value_a_channel_is_refused_in_evaluation_too():
    """Where there are no running statistics, evaluation takes the batch's."""
    net = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), LIF(static=True, steps=2)).eval()
    execute(net)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.randn(1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_network_all_in_half_precision_computes_as_it_did(dtype):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), LIF(steps=2)).to(dtype)
    twin = copy.deepcopy(net)
    execute(twin)
    x = drawn(4, 2, 6, 6).to(dtype)
    outs = [other(x) for other in (net, twin)]
    assert torch.equal(*outs)
    assert outs[1].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_types_that_no_kernel_takes_go_the_plain_way(dtype):
    net = nn.Sequential(nn.Identity(), LIF(steps=2))
    execute(net)
    x = drawn(4, 3).to(dtype)
    assert torch.equal(net(x), LIF(steps=2)(x))
    assert net(x).dtype == dtype


def test_tensors_without_memory_go_the_plain_way():
    with FakeTensorMode():
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), LIF(steps=2))
        execute(net)
        assert net(torch.randn(4, 3)).shape == (4, 3)


# ---- modules that are not what they look like --------------------------------------------------------------------


class Scaled(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 0.5


class Silent(LIF):
    def forward(self, x: Tensor) -> Tensor:
        return 1 - super().forward(x)


class Late(LIF):
    def stream(self, x: Tensor, state: Tensor | None = None, *, repeat: int = 1) -> tuple[Tensor, Tensor]:
        return super().stream(x.roll(1, 0), state, repeat=repeat)


class Average(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, 2)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [Scaled(4), LIF(steps=2)],
        lambda: [nn.BatchNorm2d(4), Silent(steps=2)],
        lambda: [nn.BatchNorm2d(4), Late(steps=2)],
        lambda: [nn.BatchNorm2d(4), LIF(steps=2), Average(2)],
    ],
)
def test_subclasses_with_a_forward_of_their_own_are_called(layers):
    assert_same(both(nn.Sequential(*layers()).double(), drawn(4, 4, 4, 4), form=torch.channels_last))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("which", [0, 1, 2, None])
def test_a_forward_that_somebody_gave_a_module_is_called(which, when):
    net = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4), LIF(steps=2), nn.MaxPool2d(2)))
    place = net[0] if which is None else net[0][which]
    if when == "after":
        execute(net)
    place.forward = lambda x: x * 0 + 3
    if when == "before":
        execute(net)
    with_it = net(torch.randn(4, 4, 4, 4).contiguous(memory_format=torch.channels_last))
    expected = {0: 1.0, 1: 3.0, 2: 3.0, None: 3.0}[which]
    assert bool((with_it == expected).all())


def test_running_statistics_stay_where_tracking_was_switched_off():
    net = nn.Sequential(nn.BatchNorm1d(4), LIF(steps=2)).double()
    net[0].track_running_stats = False
    assert_same(both(net, drawn(6, 4)))
    assert not bool(net[0].running_mean.any())


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_of_the_backward_pass_are_called(register):
    net = nn.Sequential(nn.BatchNorm1d(4), LIF(steps=2))
    execute(net)
    seen: list[nn.Module] = []
    getattr(net[0], register)(lambda module, *grads: seen.append(module))
    net(torch.randn(6, 4).requires_grad_()).sum().backward()
    assert seen == [net[0]]


def test_a_normalisation_of_another_width_fails_as_it_did():
    net = nn.Sequential(nn.BatchNorm1d(3), LIF(steps=2))
    execute(net)
    with pytest.raises(RuntimeError, match="should contain 4 elements"):
        net(torch.randn(6, 4))


@needs_kernels
def test_executing_twice_is_executing_once():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), LIF(steps=2)), nn.Linear(3, 3), LIF(steps=2))
    old = execute(net)
    new = execute(net)
    assert str(new) == str(old)
    old.detach()
    assert "forward" in vars(net), "it is the newer one's"
    new.detach()
    assert not any("forward" in vars(module) for module in net.modules())


def test_hooks_on_all_modules_are_called():
    net = nn.Sequential(nn.BatchNorm2d(2), LIF(steps=2))
    execute(net)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    try:
        net(torch.randn(4, 2, 6, 6))
    finally:
        handle.remove()
    assert seen == ["BatchNorm2d", "LIF", "Sequential"]


# ---- networks as graphs ------------------------------------------------------------------------------------------


@needs_kernels
def test_blocks_of_somebody_else_within_a_sequence_have_their_neurons_executed():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), LIF(steps=2))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + x

    net = nn.Sequential(nn.Linear(2, 2), Block(), nn.Sequential(Block())).double()
    assert [len(s.modules) for s in execute(copy.deepcopy(net)).segments] == [2, 2]
    assert_same(both(net, drawn(6, 2)))


def test_containers_in_each_other_and_by_themselves():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Linear(3, 3), LIF(steps=2))
            self.b = nn.Sequential(self.a, nn.Linear(3, 3), self.a[1])

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    assert_same(both(Net().double(), drawn(6, 3)))


def test_an_executed_network_can_be_traced():
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return not isinstance(m, nn.Sequential)

    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), LIF(steps=2)))
    execute(net[0])
    x = torch.randn(4, 3)
    graph = Tracer().trace(net)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0.0", "0.1"]
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


class Aliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        seen = x.flatten(1)
        x += 1
        return self.head(seen) + F.relu(x).mean((1, 2, 3))[:, None]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.norm = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        out = self.norm(self.one(x))
        out += x
        return F.relu(out)


class Seen(nn.Module):
    """What is added to is looked at once more."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        out = self.norm(x)
        out += x
        return F.relu(out) + out


class Named(nn.Module):
    """What is added to has another name, by which it is looked at afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        out = self.norm(x)
        other = out.flatten(2)
        out += x
        return F.relu(out).flatten(2) + other


class Viewed(nn.Module):
    """What is added to is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.one(x)
        flat = y.flatten(2)
        flat += x.flatten(2)
        return F.relu(flat) + y.flatten(2)


class Twice(nn.Module):
    """Normalisation and neuron are looked at by others too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pool = nn.BatchNorm2d(2), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(F.relu(x))
        s = F.relu(y)
        return self.pool(s) + s[..., ::2, ::2] + y[..., ::2, ::2]


class Sums(nn.Module):
    """Sums that are not the plain sum of two tensors of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) * 0.6
        x = F.relu(x + x) + F.relu(x + 0.25) + F.relu(torch.add(x, x * 2, alpha=-0.3))
        return F.relu(x + self.bias) + F.relu(self.bias + x)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.odd = nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        x = x * 2
        pooled = self.one(F.relu(x)), self.two(F.relu(x - 0.1)), self.odd(F.relu(x[..., 1:, :]))
        return torch.cat([y.flatten(1) for y in pooled], 1)


class Indexed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).flatten(0, 1)[[0, 1]]


class Before(nn.Module):
    """The pooling comes after something else has changed what the neuron saw."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = F.relu(x)
        x.mul_(3)
        return self.pool(y)


@pytest.mark.parametrize("make", [Aliased, Residual, Seen, Named, Viewed, Twice, Sums, Padded, Indexed, Before])
def test_graphs_that_are_easily_misread(make):
    net = spiking(make(), steps=2).double()
    twin = copy.deepcopy(net)
    execute(twin)
    for form in (torch.contiguous_format, torch.channels_last):
        x = drawn(4, 2, 6, 6).contiguous(memory_format=form)
        with torch.no_grad():
            assert torch.allclose(net(x.clone()), twin(x.clone()))


@needs_kernels
def test_a_shortcut_added_in_place_is_fused():
    assert [len(s.norms) for s in execute(spiking(Residual(), steps=2)).segments] == [1, 2]


@pytest.mark.parametrize("change", ["norm", "dropout", "add"])
def test_nothing_is_computed_later_than_it_was_where_its_input_changes(change):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.neuron, self.relu = nn.BatchNorm2d(2).eval(), LIF(steps=2), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            y = self.norm(x)
            if change == "norm":
                x.mul_(3)
            elif change == "dropout":
                self.relu(x)
            else:
                x += 5
            return self.neuron(y) + x

    net = traced(Net()).double().eval()
    twin = copy.deepcopy(net)
    execute(twin)
    with torch.no_grad():
        assert torch.allclose(net(drawn(4, 2, 3, 3)), twin(drawn(4, 2, 3, 3)))


def test_a_graph_gives_back_what_it_gave_back():
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = LIF(steps=2)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.neuron(x)
            return [x, x + 1]

    net = traced(Lists())
    before = net(drawn(4, 3))
    execute(net)
    after = net(drawn(4, 3))
    assert type(after) is type(before) is list
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_graph_reads_the_parameter_that_it_has_now():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x * self.scale)

    net = spiking(Net(), steps=2)
    execute(net)
    net.scale = nn.Parameter(torch.full((3,), 100.0))
    assert bool((net(torch.full((4, 3), 0.1)) == 1).all())


@pytest.mark.parametrize("size", [(5, 4), (4, 5), (5, 5), (1, 2), (6, 2)])
def test_maps_of_odd_size_are_pooled_as_they_were(size):
    net = nn.Sequential(nn.BatchNorm2d(3), LIF(steps=2), nn.MaxPool2d(2, ceil_mode=min(size) == 1)).double()
    for form in (torch.contiguous_format, torch.channels_last):
        assert_same(both(net, drawn(4, 3, *size), form=form))
        net.zero_grad()


def test_a_pooling_that_gives_places_too_is_called():
    net = nn.Sequential(LIF(steps=2), nn.MaxPool2d(2, return_indices=True))
    execute(net)
    spikes, places = net((torch.rand(4, 3, 4, 4) * 3).contiguous(memory_format=torch.channels_last))
    assert (spikes.shape, places.dtype) == ((4, 3, 2, 2), torch.int64)


def test_steps_that_do_not_divide_the_batch_are_refused():
    net = nn.Sequential(nn.BatchNorm1d(3), LIF(steps=3))
    execute(net)
    with pytest.raises(ShapeError, match="cannot hold 3 time steps"):
        net(torch.randn(4, 3))
    with pytest.raises(TypeError):
        net(torch.randn(6, 3), more=1)


def test_a_graph_of_several_inputs_keeps_its_forward():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = LIF(steps=2)

        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return self.neuron(x * scale)

    net = traced(Net())
    x = drawn(4, 3)
    before = net(x), net(x, 0.5)
    execute(net)
    assert all(torch.equal(a, b) for a, b in zip(before, (net(x), net(x, 0.5)), strict=True))


def test_copies_of_an_executed_graph_compute_the_same():
    net = spiking(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()), steps=2).double()
    execute(net)
    x = drawn(4, 3)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.allclose(other(x), copy.deepcopy(net)(x))


# ---- several threads, and the allocator --------------------------------------------------------------------------


@needs_kernels
def test_several_threads_may_call_at_once():
    torch.manual_seed(0)
    net = resnet_small(widths=(8, 16, 24), size=16)
    execute(net)
    nets = [copy.deepcopy(net) for _ in range(3)]
    x = torch.randn(4, 3, 16, 16)
    found: list[Any] = [None] * 3

    def step(index: int) -> None:
        out = nets[index](x)
        out.square().mean().backward()
        found[index] = [out, *(p.grad for p in nets[index].parameters())]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        workers = [threading.Thread(target=step, args=(i,)) for i in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        out = net(x)
        out.square().mean().backward()
    finally:
        torch.set_num_threads(threads)
    for one in found:
        assert all(torch.equal(a, b) for a, b in zip(one, [out, *(p.grad for p in net.parameters())], strict=True))


@pytest.mark.parametrize("most", [1 << 30, 32 << 20, 0])
def test_an_allocator_that_takes_less_is_not_made_worse(monkeypatch, most):
    """Whatever else is set ends its own adaptation, and would leave every large tensor a mapping of its own."""
    given: dict[int, int] = {}

    class Library:
        def mallopt(self, name: int, value: int) -> int:
            if name == -3 and value > most:
                return 0
            given[name] = value
            return 1

        malloc, free, madvise = Mock(return_value=None), Mock(), Mock()

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert keep_pages() == (most > 0)
    assert given.get(-3, 0) == most
    assert most or not given
