"""The losses as pure functions: what the student is asked to match, and how the time axis enters.

Logits are `[N, K]` or `[T, N, K]` everywhere; targets are int64 class indices `[N]`. A function that is given
`[T, N, K]` takes the mean of its losses over T and N; who wants the loss of the mean logits takes `over_time` first.
The two differ: the loss of the mean is at most the mean of the losses (Jensen).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.errors import ShapeError, UsageError

Over = Literal["mean", "step"]
LabelLoss = Callable[[Tensor, Tensor], Tensor]

# No log-probability is taken to be less than this. It turns `0 * -inf` into 0, and leaves temperature^2 * KL room in
# float32 for logits up to the largest bfloat16. A logit this far below the largest one receives no gradient.
_FLOOR = -1e30


def over_time(logits: Tensor, over: Over) -> Tensor:
    """What a loss acts on: the mean over T, `[N, K]`, or each step, `[T, N, K]`. `[N, K]` stays as it is."""
    return logits.mean(0) if over == "mean" and logits.dim() == 3 else logits


def cross_entropy(logits: Tensor, targets: Tensor, epsilon: float = 0.0) -> Tensor:
    """Cross entropy of `[N, K]`, or its mean over the steps of `[T, N, K]`; `epsilon` is the label smoothing."""
    if logits.dim() == 3:
        logits, targets = logits.flatten(0, 1), targets.repeat(len(logits))
    return F.cross_entropy(logits, targets, label_smoothing=epsilon)


def tet(logits: Tensor, targets: Tensor, regularisation: float = 1e-3) -> Tensor:
    """Temporal efficient training: `(1 - r) * mean_t CE(z[t], y) + r * MSE(z, 1)` (Deng et al. 2022).

    As the label loss of a `Distill`: `Distill(teacher, over="step", label_loss=tet)`, with another `r` by
    `functools.partial(tet, regularisation=0.05)`. The default `r` is that of the published code; 0 is `cross_entropy`.

    Args:
        logits: read-out of each step, not averaged, `[T, N, K]`.

    Raises:
        ShapeError: for logits without a time axis.
        UsageError: for a `regularisation` outside [0, 1].
    """
    if logits.dim() != 3:
        raise ShapeError(
            f"tet got logits {list(logits.shape)} but needs each step, [T, N, K]: give Distill over='step'"
        )
    if not 0 <= regularisation <= 1:
        raise UsageError(f"the regularisation of tet is {regularisation}: give a number from 0 to 1")
    spread = (logits - 1).square().mean()
    return (1 - regularisation) * cross_entropy(logits, targets) + regularisation * spread


@dataclass(frozen=True)
class LabelSmoothing:
    """Cross entropy against `(1 - epsilon) * onehot(y) + epsilon / K`: the control arm of the virtual teacher.

    A label loss, used without a teacher: `Distill(label_loss=LabelSmoothing(0.1))`. `VirtualTeacher(confidence)` at
    temperature 1 has the gradients of `epsilon = weight * (1 - confidence) * K / (K - 1)`; whoever claims that a
    virtual teacher helps shows this arm beside it. (Szegedy et al. 2016)

    Raises:
        UsageError: for an `epsilon` outside [0, 1).
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < 1:
            raise UsageError(f"epsilon is {self.epsilon}: give a number of at least 0 and below 1")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, self.epsilon)


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`log softmax(logits / temperature)` in float32 (float64 stays); same shape."""
    return F.log_softmax(widen(logits) / temperature, dim=-1)


def two_valued(targets: Tensor, like: Tensor, gap: float) -> Tensor:
    """Log-probabilities `[N, K]` of a distribution with one value at `y` and another elsewhere.

    Args:
        targets: `[N]`.
        like: logits that give K, device and dtype, `[..., N, K]`.
        gap: log of a wrong class's probability over the right one's; may be -inf.
    """
    classes = like.shape[-1]
    right = -math.log1p((classes - 1) * math.exp(gap))
    other = max(right + gap, _FLOOR)
    log_p = torch.full((len(targets), classes), other, dtype=widen(like).dtype, device=like.device)
    return log_p.scatter_(1, targets[:, None], right)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(p || q)`: sum over K, mean over everything else; scalar. The shapes broadcast; 0 log 0 is 0.

    Never `F.kl_div` with its default reduction, which divides by K too, nor with "batchmean", which divides
    `[T, N, K]` by T only. Exactly 0 for equal arguments.
    """
    log_p, log_q = log_p.clamp_min(_FLOOR), log_q.clamp_min(_FLOOR)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def softened_kl(logits: Tensor, teacher_logits: Tensor, *, temperature: float, over: Over) -> Tensor:
    """`temperature^2 * KL(softmax(teacher/temperature) || softmax(student/temperature))`; scalar (Hinton et al. 2015).

    With `over="mean"` both sides are averaged over their own T first. With `over="step"` a teacher that has the
    student's T teaches step by step; a teacher without a time axis, or with another T, shows its mean at each step.
    The teacher's side is detached.

    Args:
        logits: the student's, `[N, K]` or `[T, N, K]`.
        teacher_logits: `[N, K]` or `[T', N, K]`.

    Raises:
        ShapeError: if N or K differ.
    """
    check_fit(logits, teacher_logits)
    student = over_time(widen(logits), over)
    same_steps = student.dim() == 3 and teacher_logits.shape == student.shape
    teacher = over_time(widen(teacher_logits.detach()), "step" if same_steps else "mean")
    return temperature**2 * kl(log_probabilities(teacher, temperature), log_probabilities(student, temperature))


def check_fit(logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise `ShapeError` unless a teacher's logits speak of the same batch and classes as the student's."""
    if teacher_logits.dim() not in (2, 3) or teacher_logits.shape[-2:] != logits.shape[-2:]:
        raise ShapeError(
            f"the teacher's logits {list(teacher_logits.shape)} do not fit the student's {list(logits.shape)}: "
            f"both must end in the same [N, K]"
        )


def widen(x: Tensor) -> Tensor:
    """float32 for the half precisions, in which neither a softened softmax nor a mean over T can be told from noise."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
