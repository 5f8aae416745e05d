"""A person in front of a camera: head, torso and two jointed arms, drawn with soft edges. Arrays only, whole batches.

Positions on the body are in arm lengths, with the point between the shoulders as origin, x to the right of the image
and y downwards. Everything is even under a mirror to the last bit: swap the arms, negate what lies to the right, and
the picture is the flipped one. N is samples, A = 2 the arms (the person's right one first: it is left in the image).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDES = np.array([-1.0, 1.0])  # where in the image the person's right and left arm are
SHOULDER = 0.36  # from the origin
SEGMENT = 0.5  # upper arm, and forearm
ARM, HAND, HEAD, TORSO = 0.085, 0.12, 0.21, 0.30  # radii
NECK, CHEST, HIPS = -0.42, 0.22, 1.05  # heights of the head's centre and of the torso's ends
ELBOW = (0.6, 0.8)  # where elbows go, seen from the line between shoulder and hand: outwards and down


@dataclass(frozen=True)
class Look:
    """What does not change in a clip: `[N]` each. Brightnesses are logarithms of intensity; the background is about 0.

    `scale` is pixels an arm length, `slope` `[N, 2]` the change of the background's over the half width of the image.
    """

    scale: np.ndarray
    arm: np.ndarray
    hand: np.ndarray
    torso: np.ndarray
    head: np.ndarray
    slope: np.ndarray


def elbows(hands: np.ndarray) -> np.ndarray:
    """Elbows `[N, A, 2]` of hands `[N, A, 2]`, both seen from their shoulder, x outwards.

    Both segments are equally long, so the elbow is above the middle of shoulder and hand, by what Pythagoras leaves. It
    goes towards `ELBOW`; what of that direction points along the arm is left out: there the elbow is in depth.
    """
    squared = (hands * hands).sum(-1, keepdims=True)
    bend = np.sqrt(np.maximum(SEGMENT**2 - squared / 4, 0.0))
    outwards = np.array(ELBOW)
    along = (hands * outwards).sum(-1, keepdims=True) / np.maximum(squared, 1e-300)
    return hands / 2 + bend * (outwards - along * hands)


def log_intensity(hands: np.ndarray, place: np.ndarray, look: Look, size: int) -> np.ndarray:
    """The picture `[N, H, W]` of hands `[N, A, 2]` (seen from their shoulder, x outwards).

    `place` `[N, 2]` is the body's origin in pixels from the centre of the image.
    """
    axis = np.arange(size) - (size - 1) / 2
    x, y = axis[None, None, :], axis[None, :, None]
    scale = look.scale[:, None]
    mirror = np.stack([SIDES, np.ones(2)], axis=-1)
    shoulder = place[:, None] + scale[..., None] * np.stack([SIDES * SHOULDER, np.zeros(2)], axis=-1)
    hand = shoulder + scale[..., None] * hands * mirror
    elbow = shoulder + scale[..., None] * elbows(hands) * mirror

    def at(height: float) -> np.ndarray:
        return place + scale * np.array([0.0, height])

    picture = np.exp((look.slope[:, 0, None, None] * x + look.slope[:, 1, None, None] * y) / (size / 2))
    _paint(picture, _segment(x, y, at(CHEST), at(HIPS)), TORSO * look.scale, look.torso)
    _paint(picture, _segment(x, y, at(NECK), at(NECK)), HEAD * look.scale, look.head)
    upper = np.minimum(_segment(x, y, shoulder[:, 0], elbow[:, 0]), _segment(x, y, shoulder[:, 1], elbow[:, 1]))
    lower = np.minimum(_segment(x, y, elbow[:, 0], hand[:, 0]), _segment(x, y, elbow[:, 1], hand[:, 1]))
    _paint(picture, np.minimum(upper, lower), ARM * look.scale, look.arm)
    fists = np.minimum(_segment(x, y, hand[:, 0], hand[:, 0]), _segment(x, y, hand[:, 1], hand[:, 1]))
    _paint(picture, fists, HAND * look.scale, look.hand)
    return np.log(picture, out=picture)


def _segment(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Squared distance `[N, H, W]` of each pixel to the segment from `start` to `end`, `[N, 2]`; a point if equal."""
    dx, dy = x - start[:, 0, None, None], y - start[:, 1, None, None]
    if start is not end:
        ux, uy = (end - start).T[:, :, None, None]
        share = (dx * ux + dy * uy) / np.maximum(ux * ux + uy * uy, 1e-9)
        np.clip(share, 0.0, 1.0, out=share)
        dx, dy = dx - share * ux, dy - share * uy
    return dx * dx + dy * dy


def _paint(picture: np.ndarray, squared: np.ndarray, radius: np.ndarray, brightness: np.ndarray) -> None:
    """Lay a shape over the intensities in place; a pixel that its edge crosses mixes both."""
    cover = np.sqrt(squared, out=squared)
    np.subtract((radius + 0.5)[:, None, None], cover, out=cover)
    np.clip(cover, 0.0, 1.0, out=cover)
    cover *= np.minimum(2 * radius, 1.0)[:, None, None]  # thinner than a pixel: it cannot cover one
    picture += cover * (np.exp(brightness)[:, None, None] - picture)
