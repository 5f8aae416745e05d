"""Who teaches: a network, the student's past, one of its steps, its own half, or no network at all.

Here are the protocol and the teachers without a network; `networks.py` has those with one.

A teacher is any object with the three members of `Teacher`; there is nothing to inherit. One that returns the negated
logits of a network, as a user would write it:

    class Contrarian:
        updates = "never"

        def __init__(self, model):
            self.model = model.eval()

        def loss(self, logits, targets, *, inputs, temperature, over):
            with torch.no_grad():
                taught = -self.model(inputs)
            return softened_kl(logits, taught, temperature=temperature, over=over)

        def update(self, model, step):
            pass

Teachers are plain objects, so no student ever registers one.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from regraft.distill.losses import Over, kl, log_probabilities, over_time, two_valued, widen
from regraft.errors import ShapeError, UsageError, nearest

Convention = Literal["softened", "paper", "released"]
Which = Literal["weakest", "strongest"]


class Teacher(Protocol):
    """What `Distill` asks of a teacher."""

    @property
    def updates(self) -> str:
        """When `update` is due: "never", after each optimiser "step", or just before each rewiring "event"."""
        ...

    def loss(self, logits: Tensor, targets: Tensor, *, inputs: Any, temperature: float, over: Over) -> Tensor | None:
        """The scalar that `weight` multiplies, its factor `temperature^2` included; None while there is no teacher.

        Args:
            logits: the student's, with its graph, `[N, K]` or `[T, N, K]`.
            targets: `[N]`.
            inputs: what the student saw; None if the caller gave none.
        """
        ...

    def update(self, model: nn.Module, step: int) -> None:
        """Learn from the student as it is now. Does nothing in a teacher that never changes."""
        ...


class VirtualTeacher:
    """No network: probability `confidence` for the right class, the rest shared equally (Tf-KD, Yuan et al. 2020).

    With `p[y] = confidence` and `p = (1 - confidence)/(K - 1)` elsewhere, three conventions:

    - `softened`: target `p^(1/temperature)/Z`, student softened, times `temperature^2`: the formula of `Distill`.
    - `paper`: the same target; the student is *not* softened, no `temperature^2`.
    - `released`: what the authors' code does: target `softmax(p/temperature)` of the *probabilities*, student not
      softened, no `temperature^2`, a mean over batch *and* classes times `multiplier` (default K).

    At K = 100, temperature 20 and confidence 0.99 the right class gets 0.0105 in `released` (others 0.00999: uniform
    to 5 %, a confidence penalty) and 0.0157 in the others (0.00994): `probabilities` tells. At temperature 1,
    `softened` and `paper` are label smoothing, see `LabelSmoothing`. Hard labels only.

    Raises:
        UsageError: for a confidence not above 1/K (K is known at the first call) or above 1; an unknown convention;
            a multiplier that is not above 0 or not for `released`.
    """

    updates = "never"

    def __init__(
        self, confidence: float = 0.99, convention: Convention = "softened", multiplier: float | None = None
    ) -> None:
        if not 0 < confidence <= 1:
            raise UsageError(f"confidence is {confidence}: give a number above 1/K and at most 1")
        if convention not in get_args(Convention):
            raise UsageError(f"no convention is called {convention!r}: {nearest(convention, get_args(Convention))}")
        if multiplier is not None and convention != "released":
            raise UsageError(f"multiplier belongs to convention='released', not to {convention!r}: leave it out")
        if multiplier is not None and not (math.isfinite(multiplier) and multiplier > 0):
            raise UsageError(f"multiplier is {multiplier}: give a finite number above 0 (the default is K)")
        self.confidence = confidence
        self.convention: Convention = convention
        self.multiplier = multiplier

    def loss(self, logits: Tensor, targets: Tensor, *, inputs: Any, temperature: float, over: Over) -> Tensor:
        classes = logits.shape[-1]
        log_p = two_valued(targets, logits, self._gap(classes, temperature))
        softening = temperature if self.convention == "softened" else 1.0
        divergence = kl(log_p, log_probabilities(over_time(widen(logits), over), softening))
        if self.convention == "released":
            multiplier = classes if self.multiplier is None else self.multiplier
            return multiplier / classes * divergence
        return softening**2 * divergence

    def update(self, model: nn.Module, step: int) -> None:
        """Nothing: this teacher is fixed."""

    def probabilities(self, classes: int, temperature: float) -> tuple[float, float]:
        """What the student is really asked to match: probability of the right class and of each other one."""
        ratio = math.exp(self._gap(classes, temperature))
        right = 1 / (1 + (classes - 1) * ratio)
        return right, ratio * right

    def _gap(self, classes: int, temperature: float) -> float:
        """Log of a wrong class's probability over the right one's, after softening."""
        if self.confidence * classes <= 1:
            raise UsageError(
                f"confidence {self.confidence} is no more than 1/K with K = {classes} classes: "
                f"such a teacher prefers the wrong ones; give more than {1 / classes:g}"
            )
        other = (1 - self.confidence) / (classes - 1)
        if self.convention == "released":
            return (other - self.confidence) / temperature
        return math.log(other / self.confidence) / temperature if other > 0 else -math.inf

    def __repr__(self) -> str:
        return f"VirtualTeacher({self.confidence:g}, {self.convention!r})"


class StepTeacher:
    """No network: the time step with the least (or most) mean true-class confidence teaches the others.

    Confidence is the unsoftened softmax at `y`, its mean over the *batch*, so one step is chosen for all samples
    (ties: the earliest). That step's logits, detached, are the target of the mean of the other steps
    (`over="mean"`) or of each of them (`over="step"`). Weak to strong: Ding et al., NeurIPS 2025, there as a whole
    cross entropy plus a whole KL at temperature 2 without the square:

        Distill(StepTeacher(), weight=1, label_weight=1, temperature=2)

    Args:
        which: `weakest` (the reverse), or `strongest` for contrast.
        square: multiply the KL by `temperature^2`; published without.

    Raises:
        UsageError: for another `which`.
        ShapeError: for logits that are not `[T, N, K]` with T >= 2.
    """

    updates = "never"

    def __init__(self, which: Which = "weakest", *, square: bool = False) -> None:
        if which not in get_args(Which):
            raise UsageError(f"which is {which!r}: {nearest(which, get_args(Which))}")
        self.which: Which = which
        self.square = square

    def loss(self, logits: Tensor, targets: Tensor, *, inputs: Any, temperature: float, over: Over) -> Tensor:
        if logits.dim() != 3 or len(logits) < 2:
            raise ShapeError(
                f"StepTeacher got logits {list(logits.shape)}: "
                f"one step teaches the others, so give [T, N, K] with T of at least 2"
            )
        chosen = self.choose(logits, targets)
        # Indices rather than a comparison: no value has to leave the device to know which steps are the others.
        others = (chosen + torch.arange(1, len(logits), device=logits.device)) % len(logits)
        taught = log_probabilities(logits.detach().index_select(0, chosen[None]), temperature)
        student = over_time(widen(logits.index_select(0, others)), over)
        divergence = kl(taught, log_probabilities(student, temperature))
        return temperature**2 * divergence if self.square else divergence

    def choose(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The teaching step for logits `[T, N, K]` and targets `[N]`, a 0-dim int64 tensor."""
        log_p = log_probabilities(logits.detach())
        confidence = log_p.exp().gather(2, targets.expand(len(logits), -1)[..., None]).mean((1, 2))
        return confidence.argmin() if self.which == "weakest" else confidence.argmax()

    def update(self, model: nn.Module, step: int) -> None:
        """Nothing: this teacher has no memory."""

    def __repr__(self) -> str:
        return f"StepTeacher({self.which!r}{', square=True' if self.square else ''})"
