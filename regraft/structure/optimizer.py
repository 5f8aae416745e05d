"""What an optimiser keeps for each connection: found, cleared where none exists, begun where one grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regraft.errors import OptimizerError, UsageError

_UNSHAPED = {"LBFGS", "Adafactor", "SparseAdam", "Shampoo", "ZeroRedundancyOptimizer", "SM3"}
_SECOND_MOMENTS = {"exp_avg_sq", "max_exp_avg_sq", "square_avg"}


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimiser inside wrappers that hold it as `.optimizer` (their own step hooks never fire).

    Raises `OptimizerError` for optimisers whose state is not shaped like the parameter, by name.
    """
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"attach() takes a torch optimizer, not {type(optimizer).__name__}")
    name = next((c.__name__ for c in type(optimizer).__mro__ if c.__name__ in _UNSHAPED), None)
    if name is not None:
        raise OptimizerError(
            f"{name} keeps state that is not shaped like its parameters, so absent connections cannot be kept out of "
            f"it. Use SGD, Adam, AdamW, RMSprop or another optimiser with one state value for each weight"
        )
    return optimizer


def check_owns(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises `UsageError` if some of `parameters` would not be stepped by `optimizer`."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in parameters.items() if id(p) not in owned]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(
            f"the optimiser does not hold {', '.join(missing[:3])}{more}: "
            f"give it model.parameters(), or leave these out of the topology with exclude="
        )


def shaped_state(optimizer: Optimizer, name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state tensors of one parameter, one value for each weight (momentum, both Adam moments, ...).

    Raises `OptimizerError` where a state tensor has several values but another shape.
    """
    shaped = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.numel() > 1:
            if value.shape != parameter.shape:
                raise OptimizerError(
                    f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name!r} of shape "
                    f"{tuple(parameter.shape)}: absent connections cannot be kept out of it. Use SGD, Adam or AdamW"
                )
            shaped[key] = value
        elif isinstance(value, Tensor) and value.shape == parameter.shape:
            shaped[key] = value
    return shaped


def begin(state: Mapping[str, Tensor], grown: Tensor, survived: Tensor) -> None:
    """Start second moments of `grown` connections at the mean over `survived` ones; everything else starts at 0.

    Adam's step count is shared by the whole tensor, so from 0 the first update of a grown connection would be about
    (1 - beta1)/sqrt(1 - beta2), three learning rates; from the mean it is as large as its gradient deserves.
    """
    for key in _SECOND_MOMENTS & state.keys():
        if bool(survived.any()):
            state[key][grown] = state[key][survived].float().mean().to(state[key].dtype)
