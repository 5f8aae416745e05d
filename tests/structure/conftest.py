"""A net of 452 connections and its batches, small enough to be watched weight by weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 20),
            nn.ReLU(),
            nn.Linear(20, 3),
        ).to(dtype)


def _batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 3, (8,), generator=generator)


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    """`net(dtype)`: convolution 72, linear 320 and 60 connections, always the same weights."""
    return _net


@pytest.fixture
def batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """`batch(step, dtype)`: eight images and labels, a function of the step."""
    return _batch


@pytest.fixture
def train() -> Callable[..., None]:
    """`train(model, optimizer, first, last, after_backward)`: the plain loop over steps `first..last`."""

    def run(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        first: int,
        last: int,
        after_backward: Callable[[int], None] = lambda step: None,
    ) -> None:
        for step in range(first, last + 1):
            x, y = _batch(step, next(model.parameters()).dtype)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            after_backward(step)
            optimizer.step()

    return run
