"""A fixed teacher's logits on samples that never change, computed once."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn


class Remembered:
    """A `forward` for `NetworkTeacher` that looks logits up: `NetworkTeacher(net, forward=Remembered(net, batches))`.

    For training without augmentation, where a teacher would see the same samples every epoch. A sample is known by its
    content, so any order and any batch will do, and one that is not known is computed. All are computed here, in the
    order given, so that a training that goes on later is taught by the same bits.

    Args:
        model: the teacher; it is put in eval mode.
        batches: all training samples, as the student will see them.
        axis: of N in a batch: 0 for `[N, ...]`, 1 for `[T, N, ...]`.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Tensor], axis: int = 0) -> None:
        self._axis = axis
        self._rows: dict[bytes, Tensor] = {}  # [K] or [T, K]; of equal samples the last, which is as good
        model.eval()
        with torch.no_grad():
            for x in batches:
                self._rows |= zip(self._keys(x), model(x).movedim(-2, 0).unbind(), strict=True)

    def __call__(self, model: nn.Module, inputs: Any) -> Tensor:
        """The logits `[N, K]` or `[T, N, K]` of a batch."""
        keys = self._keys(inputs)
        if not self._rows.keys() >= set(keys):
            return model(inputs)
        return torch.stack([self._rows[key] for key in keys], dim=-2)

    def _keys(self, x: Tensor) -> list[bytes]:
        samples = x.detach().movedim(self._axis, 0).cpu().contiguous()
        return [blake2b(sample, digest_size=16).digest() for sample in samples.view(torch.uint8).flatten(1).numpy()]
