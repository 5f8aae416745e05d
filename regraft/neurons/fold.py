"""Time folded into the batch: `[T, N, ...]` seen as `[T*N, ...]`, time-major, so stock layers know nothing of time."""

from __future__ import annotations

from torch import Tensor, nn

from regraft.errors import ShapeError


def fold(x: Tensor) -> Tensor:
    """`[T, N, ...]` -> `[T*N, ...]`."""
    return x.flatten(0, 1)


def unfold(x: Tensor, steps: int) -> Tensor:
    """`[T*N, ...]` -> `[T, N, ...]` with T = `steps`; raises `ShapeError` if `steps` does not divide the batch."""
    if x.shape[0] % steps:
        raise ShapeError(
            f"a folded batch of {x.shape[0]} cannot hold {steps} time steps: "
            f"the first axis must be steps * batch (is a static input fed where a folded one is expected?)"
        )
    return x.unflatten(0, (steps, -1))


def repeat(x: Tensor, steps: int) -> Tensor:
    """A static `[N, ...]` seen at each of the steps: `[T*N, ...]`; for a static branch that meets a folded one."""
    return fold(x.expand(steps, *x.shape))


def set_steps(model: nn.Module, steps: int) -> None:
    """Give every neuron in `model` (every module with `steps`) this number of time steps."""
    if steps < 1:
        raise ShapeError(f"steps is {steps}: a spiking network needs at least 1 time step")
    for module in model.modules():
        if hasattr(module, "steps"):
            module.steps = steps  # pyright: ignore[reportArgumentType]
