"""Synthetic gestures: a person moves the arms in front of an event camera. Event data without a download.

Eleven classes, named and ordered as in DVS-Gesture (Amir et al. 2017, A Low Power, Fully Event-Based Gesture
Recognition System): each is a path of both hands; elbows follow (`limbs`), an event camera looks on (`camera`). What
tells classes apart is which arm moves and how: the sense of rotation, what the two hands do at the same time, the
shape of the path. Where the person stands, how large and how fast, and whether sleeves are brighter or darker than the
wall is drawn anew for each clip, so polarity alone does not show where an arm is heading. Test clips are drawn from
wider ranges (`TRAIN`, `TEST`). It is no substitute for recordings.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np

from regraft.data.camera import fire, noise, thresholds
from regraft.data.limbs import SIDES, Look, log_intensity
from regraft.errors import UsageError

SAMPLES = {"train": 6600, "test": 880}  # unless told otherwise
SECONDS = 1.6  # of a clip
LOOKS = 32  # at which the camera compares intensities in a clip, at least
THRESHOLD, MISMATCH = 0.2, 0.03  # log intensity: v2e's noisy setting is 0.03
HOT_RATE = 20.0  # events a second of a pixel that never rests
DRAWS = 32  # uniform numbers behind a scene, more than it takes
CHUNK = 16  # clips made at once: what is worked on stays in the processor's cache

Range = tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """From what a clip is drawn, uniformly. Lengths are pixels of a 32-pixel image; `size` scales them."""

    scale: Range
    """Arm length."""
    across: Range
    """Where the person stands, from the middle of the image."""
    down: Range
    """Height of the shoulders, from the middle of the image downwards."""
    tempo: Range
    """Cycles of the gesture in a second."""
    amplitude: Range
    """Of the hands' paths, as a factor."""
    posture: Range
    """Moves the centre of each hand's path, in arm lengths."""
    contrast: Range
    """Log intensity between arms and background, up or down."""
    sway: Range
    """Amplitude of the body's slow sway."""
    jitter: Range
    """Amplitude of the camera's shaking."""
    noise: Range
    """Shot noise, events a second and pixel."""
    hot: Range
    """Hot pixels; rounded down."""


TRAIN = Ranges(
    scale=(7.4, 9.6),
    across=(-5, 5),
    down=(-6, 3),
    tempo=(0.5, 0.87),
    amplitude=(0.85, 1.15),
    posture=(-0.06, 0.06),
    contrast=(0.75, 1.45),
    sway=(0.3, 0.7),
    jitter=(0, 0.2),
    noise=(0.02, 0.2),
    hot=(0, 4),
)
TEST = Ranges(
    scale=(7.1, 9.9),
    across=(-5.5, 5.5),
    down=(-6.5, 3.5),
    tempo=(0.46, 0.92),
    amplitude=(0.8, 1.2),
    posture=(-0.08, 0.08),
    contrast=(0.7, 1.5),
    sway=(0.3, 0.8),
    jitter=(0, 0.25),
    noise=(0.01, 0.3),
    hot=(0, 6),
)


@dataclass(frozen=True)
class Path:
    """One hand: `(x + width cos(kx p), y + height sin(ky p + lag))` in arm lengths from its shoulder; `p` is the phase.

    x points away from the body, y down.
    """

    x: float = 0.08
    y: float = 0.85
    width: float = 0.0
    height: float = 0.0
    kx: float = 1.0
    ky: float = 1.0
    lag: float = 0.0


REST = Path()
WAVE = Path(0.4, -0.5, width=0.4, height=0.08, ky=2, lag=np.pi / 2)
# y points down, so this turns clockwise on the left arm, which points to the right of the image.
ROUND = Path(0.42, -0.05, width=0.55, height=0.55)
BACK = replace(ROUND, height=-ROUND.height)
CLAP = Path(-0.02, 0.25, width=0.32)
ROLL = Path(-0.05, 0.3, width=0.3, height=0.42)
DRUM = Path(0.12, 0.4, height=0.3)
STRUM = Path(-0.15, 0.65, width=0.1, height=0.22, kx=2, ky=2)
NECK = Path(0.7, 0.1, width=0.1, height=0.04)
RAISE = Path(0.45, 0.0, width=0.1, height=0.6, kx=2)
BACKWARDS = (replace(ROLL, width=-ROLL.width), replace(ROLL, height=-ROLL.height))

# The two hands, right one first; a clip takes one of the variants. A half cycle apart: the other sign.
GESTURES: dict[str, tuple[tuple[Path, Path], ...]] = {
    "hand clapping": ((CLAP, CLAP),),
    "right hand wave": ((WAVE, REST),),
    "left hand wave": ((REST, WAVE),),
    "right arm clockwise": ((BACK, REST),),
    "right arm counter-clockwise": ((ROUND, REST),),
    "left arm clockwise": ((REST, ROUND),),
    "left arm counter-clockwise": ((REST, BACK),),
    "arm roll": ((ROLL, replace(ROLL, width=-ROLL.width, height=-ROLL.height)),),
    "air drums": ((DRUM, replace(DRUM, height=-DRUM.height)),),
    "air guitar": ((STRUM, NECK), (NECK, STRUM)),
    # Every second one is the arm roll backwards: only the order of time tells them apart.
    "other gestures": ((ROUND, ROUND), (RAISE, RAISE), BACKWARDS, BACKWARDS),
}


@dataclass(frozen=True)
class Scene:
    """N clips to be: `paths` `[N, A, 7]` (the fields of `Path`), all else `[N]`, or `[N, 2]` where it has x and y."""

    look: Look
    paths: np.ndarray
    tempo: np.ndarray
    phase: np.ndarray
    wobble: np.ndarray
    place: np.ndarray
    sway: np.ndarray
    sway_phase: np.ndarray
    jitter: np.ndarray
    jitter_phase: np.ndarray
    noise: np.ndarray
    hot: np.ndarray


def synthetic_gestures(
    split: str, seed: int = 0, *, steps: int = 16, size: int = 32, samples: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Arm gestures before an event camera, 11 classes: simulated, nothing to download.

    Clip `i` is a function of (split, seed, i) alone, of class `i % 11`; `samples` only says how many there are.

    Args:
        split: `train` (6,600 clips unless told otherwise), or `test` (880), drawn from wider ranges.
        steps: T, into which the 1.6 seconds of a clip are cut.
        size: H and W.
        samples: clips.

    Returns:
        Event counts `[N, T, 2, H, W]` uint8 (OFF, then ON), and labels `[N]` int64 in the order of `GESTURES`.

    Raises:
        UsageError: for another split, or a number that cannot be meant.
    """
    if split not in SAMPLES:
        raise UsageError(f"synthetic_gestures: there is no split {split!r}: give 'train' or 'test'")
    count = SAMPLES[split] if samples is None else samples
    for name, value, least in (("seed", seed, 0), ("steps", steps, 1), ("size", size, 8), ("samples", count, 1)):
        if type(value) is not int or value < least:
            raise UsageError(f"synthetic_gestures: {name} is {value!r}: give a whole number, at least {least}")
    x = np.empty((count, steps, 2, size, size), dtype=np.uint8)
    y = np.arange(count) % len(GESTURES)
    for start in range(0, count, CHUNK):
        part = np.arange(start, min(start + CHUNK, count))
        x[part] = _clips(split, seed, part, steps, size)
    return x, y


def _clips(split: str, seed: int, indices: np.ndarray, steps: int, size: int) -> np.ndarray:
    """The clips of these indices, each from its own stream: `[N, T, 2, H, W]` uint8."""
    ranges = TRAIN if split == "train" else TEST
    streams = [np.random.default_rng([seed, split == "test", int(index)]) for index in indices]
    scene = draw(np.stack([rng.random(DRAWS) for rng in streams]), indices % len(GESTURES), ranges, size)
    limits = np.stack([thresholds(rng, (2, size, size), THRESHOLD, MISMATCH) for rng in streams])
    counts = record(scene, limits[:, 0], limits[:, 1], steps, size)
    for n, rng in enumerate(streams):
        rate, hot = float(scene.noise[n]), int(scene.hot[n])
        counts[n] += noise(rng, steps=steps, size=size, seconds=SECONDS, rate=rate, hot=hot, hot_rate=HOT_RATE)
    return np.minimum(counts, 255).astype(np.uint8)


def draw(uniform: np.ndarray, y: np.ndarray, ranges: Ranges, size: int) -> Scene:
    """Scenes of classes `y` `[N]` from `uniform` `[N, DRAWS]`, numbers in [0, 1) that are used up from the left."""
    columns = iter(uniform.T)

    def one(low: float, high: float) -> np.ndarray:
        return low + (high - low) * next(columns)

    def two(across: Range, down: Range) -> np.ndarray:
        return np.stack([one(*across), one(*down)], axis=-1)

    pixels = size / 32
    contrast = one(*ranges.contrast) * np.where(next(columns) < 0.5, -1.0, 1.0)
    look = Look(
        scale=one(*ranges.scale) * pixels,
        arm=contrast,
        hand=contrast * one(0.85, 1.2),
        torso=contrast * one(-0.4, 0.4),
        head=contrast * one(-0.6, 0.6),
        slope=two((-0.15, 0.15), (-0.15, 0.15)),
    )
    return Scene(
        look=look,
        paths=_paths(
            y, next(columns), one(*ranges.amplitude), np.stack([two(ranges.posture, ranges.posture) for _ in SIDES], 1)
        ),
        tempo=one(*ranges.tempo),
        phase=next(columns),
        wobble=one(-0.3, 0.3),
        place=two(ranges.across, ranges.down) * pixels,
        sway=one(*ranges.sway)[:, None] * pixels * np.array([1.0, 0.3]),
        sway_phase=next(columns)[:, None],
        jitter=one(*ranges.jitter)[:, None] * pixels * np.ones(2),
        jitter_phase=two((0, 1), (0, 1)),
        noise=one(*ranges.noise),
        hot=np.floor(one(*ranges.hot)),
    )


def _paths(y: np.ndarray, choice: np.ndarray, amplitude: np.ndarray, posture: np.ndarray) -> np.ndarray:
    """The paths `[N, A, 7]` of classes `y`: a variant chosen (`choice` `[N]`, in [0, 1)).

    Its centres are moved by `posture` `[N, A, 2]`, its size is changed by `amplitude` `[N]`.
    """
    kinds = list(GESTURES.values())
    pairs = [kinds[k][int(c * len(kinds[k]))] for k, c in zip(y, choice, strict=True)]
    paths = np.array([[astuple(hand) for hand in pair] for pair in pairs])
    paths[..., :2] += posture
    paths[..., 2:4] *= amplitude[:, None, None]
    return paths


def record(scene: Scene, off: np.ndarray, on: np.ndarray, steps: int, size: int) -> np.ndarray:
    """Counts `[N, T, 2, H, W]` float64 of a camera with thresholds `off` and `on` `[N, H, W]`, without noise."""
    looks = -(-LOOKS // steps)
    counts = np.zeros((len(scene.phase), steps, 2, size, size))
    reference = _see(scene, 0.0, size)
    for step in range(steps):
        for look in range(looks):
            time = SECONDS * (step * looks + look + 1) / (steps * looks)
            falls, rises, reference = fire(_see(scene, time, size), reference, off, on)
            counts[:, step, 0] += falls
            counts[:, step, 1] += rises
    return counts


def _see(scene: Scene, time: float, size: int) -> np.ndarray:
    """Log intensities `[N, H, W]` at a time in seconds."""
    return log_intensity(hands(scene, time), place(scene, time), scene.look, size)


def hands(scene: Scene, time: float) -> np.ndarray:
    """Hands `[N, A, 2]` at a time, seen from their shoulder, x outwards. No cycle is quite even: the phase wobbles."""
    turns = 2 * np.pi * (scene.tempo * time + scene.phase)
    phase = (turns + scene.wobble * np.sin(turns))[:, None]
    x, y, width, height, kx, ky, lag = np.moveaxis(scene.paths, -1, 0)
    return np.stack([x + width * np.cos(kx * phase), y + height * np.sin(ky * phase + lag)], axis=-1)


def place(scene: Scene, time: float) -> np.ndarray:
    """The body's origin `[N, 2]` in pixels from the middle of the image: it sways at 0.5 Hz, the camera at 6 Hz."""
    sway = scene.sway * np.sin(2 * np.pi * (0.5 * time + scene.sway_phase))
    jitter = scene.jitter * np.sin(2 * np.pi * (6.0 * time + scene.jitter_phase))
    return scene.place + sway + jitter
