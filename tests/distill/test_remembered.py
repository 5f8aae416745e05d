"""A teacher that is asked once: the same lesson, in any order, at the price of a look."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regraft.distill import Distill, NetworkTeacher, Remembered


class Counting(nn.Module):
    """Logits `[N, K]`, or `[T, N, K]` of events; counts the samples that it saw."""

    def __init__(self, events: bool) -> None:
        super().__init__()
        self.layer, self.events, self.seen = nn.Linear(6, 3), events, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x.shape[1] if self.events else len(x)
        return self.layer(x.flatten(2 if self.events else 1))


@pytest.mark.parametrize("events", [False, True])
def test_the_lesson_is_the_same_and_the_network_is_not_asked_again(events):
    torch.manual_seed(0)
    shape = (4, 10, 2, 3) if events else (10, 2, 3)
    x, y = torch.rand(shape), torch.arange(10) % 3
    axis = int(events)
    net = Counting(events)
    plain = NetworkTeacher(net)
    batches = [x.narrow(axis, start, count) for start, count in ((0, 4), (4, 6))]
    knows = NetworkTeacher(net, forward=Remembered(net, batches, axis))
    seen = net.seen
    assert seen == 10
    order = torch.randperm(10)
    chosen = x.index_select(axis, order[:5])
    logits = torch.rand((4, 5, 3) if events else (5, 3), requires_grad=True)
    losses = [Distill(teacher)(logits, y[order[:5]], inputs=chosen) for teacher in (plain, knows)]
    assert torch.allclose(*losses)
    assert knows.model.seen == seen, "its copy was never called"


def test_what_is_not_known_is_computed():
    torch.manual_seed(0)
    net = Counting(False)
    teacher = NetworkTeacher(net, forward=Remembered(net, [torch.rand(4, 2, 3)]))
    x = torch.rand(5, 2, 3)
    logits, y = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    assert torch.equal(Distill(teacher)(logits, y, inputs=x), Distill(NetworkTeacher(net))(logits, y, inputs=x))


def test_a_change_in_one_value_is_another_sample():
    net = Counting(False)
    x = torch.rand(4, 2, 3)
    look = Remembered(net, [x])
    seen = net.seen
    look(net, x)
    assert net.seen == seen
    x[2, 0, 0] += 1e-6
    look(net, x)
    assert net.seen == seen + 4
