"""`Distill`: the criterion that a training loop calls, with or without a teacher."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor, nn

from regraft.distill.losses import LabelLoss, Over, cross_entropy, over_time
from regraft.distill.teachers import Teacher
from regraft.errors import ShapeError, UsageError, nearest


class Distill:
    """The loss of a student who also has a teacher (Hinton et al. 2015; reversed, Yuan et al. 2020).

        L = (1 - weight) * CE(z, y) + weight * D
        D = temperature^2 * KL(p_temperature || softmax(z / temperature))

    where `D` is what `teacher.loss` returns; most teachers return the formula above, and those that do not say so.
    Without a teacher, at `weight=0`, and while a teacher has nothing to show yet (`PreviousTeacher` before the first
    event), `L` is the label loss alone, unweighted: plain training to the bit, and the teacher is not even called.

        criterion = Distill(VirtualTeacher(), weight=0.5, temperature=4)
        loss = criterion(model(x), y, inputs=x)          # logits [N, K] or [T, N, K]

    A plain object, not a module: a teacher's network can never appear among the student's parameters, in an optimiser
    or in the student's `state_dict`. `parts` holds the two parts of the last call.

    Args:
        teacher: any object of the `Teacher` protocol, or None.
        weight: share of the distillation, 0 to 1.
        temperature: softens both sides, above 0.
        over: both losses act on the `"mean"` of the logits over T, or on each `"step"` (mean of the steps' losses).
        label_loss: `(logits, targets) -> scalar` in place of the cross entropy, for example `tet` (with `over="step"`)
            or `LabelSmoothing(0.1)`. It sees `[N, K]` for `over="mean"` and the logits as they came for `"step"`.
        label_weight: what the label loss is multiplied with; `1 - weight` unless given. Some publications add the
            distillation to a whole cross entropy: `weight=1, label_weight=1` is `CE + D`.

    Raises:
        UsageError: for values outside the ranges above; a teacher that is not one.
    """

    def __init__(
        self,
        teacher: Teacher | None = None,
        *,
        weight: float = 0.5,
        temperature: float = 4.0,
        over: Over = "mean",
        label_loss: LabelLoss = cross_entropy,
        label_weight: float | None = None,
    ) -> None:
        if not 0 <= weight <= 1:
            raise UsageError(f"weight is {weight}: give a number from 0 (labels only) to 1 (teacher only)")
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"temperature is {temperature}: give a finite number above 0")
        if over not in get_args(Over):
            raise UsageError(f"over is {over!r}: {nearest(str(over), get_args(Over))}")
        if label_weight is not None and not (math.isfinite(label_weight) and label_weight >= 0):
            raise UsageError(f"label_weight is {label_weight}: give a finite number of at least 0")
        if teacher is not None and not all(hasattr(teacher, name) for name in ("loss", "update", "updates")):
            raise UsageError(
                f"{type(teacher).__name__} is no teacher (loss, update, updates): "
                f"wrap a network in NetworkTeacher(model); label smoothing is a label_loss"
            )
        if teacher is not None and teacher.updates not in ("never", "step", "event"):
            raise UsageError(f"{teacher}.updates is {teacher.updates!r}: give 'never', 'step' or 'event'")
        self.teacher = teacher
        self.weight = weight
        self.temperature = temperature
        self.over: Over = over
        self.label_loss = label_loss
        self.label_weight = label_weight
        self.parts: dict[str, Tensor] = {}
        """Of the last call, detached 0-dim tensors, unweighted: `label` and `distill` (`D`; 0 where not called)."""

    def __call__(self, logits: Tensor, targets: Tensor, *, inputs: Any = None) -> Tensor:
        """The scalar to call `backward` on.

        Args:
            logits: the student's, floating, `[N, K]` or `[T, N, K]`.
            targets: class indices, int64, `[N]`.
            inputs: the very batch that the student saw; teachers with a network need it.

        Raises:
            ShapeError: for logits, targets or a teacher's logits that do not fit each other.
            UsageError: for targets that are not class indices; missing `inputs`.
        """
        _check(logits, targets)
        label = self.label_loss(over_time(logits, self.over), targets)
        lesson = None
        if self.teacher is not None and self.weight > 0:
            lesson = self.teacher.loss(logits, targets, inputs=inputs, temperature=self.temperature, over=self.over)
        if lesson is None:
            self.parts = {"label": label.detach(), "distill": torch.zeros_like(label.detach())}
            return label
        self.parts = {"label": label.detach(), "distill": lesson.detach()}
        label_weight = 1 - self.weight if self.label_weight is None else self.label_weight
        if label_weight == 0:  # not `0 * label`, which an infinite label loss would make nan
            return self.weight * lesson
        return label_weight * label + self.weight * lesson

    def update(self, model: nn.Module, step: int) -> None:
        """To be called after each optimiser step, whatever the teacher: only one that follows each step moves."""
        if self.teacher is not None and self.teacher.updates == "step":
            self.teacher.update(model, step)

    def before_event(self, model: nn.Module, step: int) -> None:
        """To be called before each rewiring event, whatever the teacher: only one that keeps the student of then moves.

        `topology.before_event(criterion.before_event)` sees to it.
        """
        if self.teacher is not None and self.teacher.updates == "event":
            self.teacher.update(model, step)

    def state_dict(self) -> dict[str, Tensor]:
        """What must be saved to go on to the bit: the tensors of a teacher that moves; empty for all others."""
        save = getattr(self.teacher, "state_dict", None)
        return {} if save is None else save()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; raises `RunError` if it does not fit."""
        restore = getattr(self.teacher, "load_state_dict", None)
        if restore is not None:
            restore(state)

    def __repr__(self) -> str:
        return f"Distill({self.teacher}, weight={self.weight:g}, temperature={self.temperature:g}, over={self.over!r})"


def _check(logits: Tensor, targets: Tensor) -> None:
    shapes = f"logits {list(logits.shape)} and targets {list(targets.shape)}"
    if logits.dim() not in (2, 3) or not logits.is_floating_point():
        raise ShapeError(f"{shapes}, {logits.dtype}: the logits must be floating, [N, K] or [T, N, K]")
    if targets.dtype != torch.int64:
        hint = (
            "soft targets (mixed labels, one-hot) are not supported" if targets.is_floating_point() else "use .long()"
        )
        raise UsageError(f"the targets {list(targets.shape)} are {targets.dtype}: give int64 class indices [N]; {hint}")
    if (
        targets.device.type == "cpu"
        and targets.numel()
        and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[-1]
    ):
        raise ShapeError(
            f"{shapes}: the targets run from {int(targets.min())} to {int(targets.max())}, but the logits have K = "
            f"{logits.shape[-1]} classes, 0 to {logits.shape[-1] - 1} (an ignored label such as -100 is not supported)"
        )
    if targets.dim() != 1 or len(targets) != logits.shape[-2]:
        raise ShapeError(f"{shapes} do not fit: the targets must be [N] with the N of the logits, [N, K] or [T, N, K]")
