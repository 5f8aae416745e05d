"""Synthetic gestures: seeded to the bit, fair to left and right, of other ranges in the test split."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import gestures
from regraft.data.gestures import DRAWS, GESTURES, TEST, TRAIN, Scene, draw, hands, place, record, synthetic_gestures
from regraft.data.limbs import HEAD, SEGMENT, Look, elbows, log_intensity
from regraft.errors import UsageError

NAMES = list(GESTURES)
MIRRORED = {
    "right hand wave": "left hand wave",
    "right arm clockwise": "left arm counter-clockwise",
    "right arm counter-clockwise": "left arm clockwise",
}


def scene_of(names, seed=0, size=32, ranges=TRAIN) -> Scene:
    y = np.array([NAMES.index(name) for name in names])
    return draw(np.random.default_rng(seed).random((len(y), DRAWS)), y, ranges, size)


def look_of(scene: Scene, **changes) -> Scene:
    return replace(scene, look=replace(scene.look, **changes))


def quiet(scene: Scene, steps=16, size=32) -> np.ndarray:
    """What an ideal camera sees."""
    limits = np.full((len(scene.phase), size, size), 0.2)
    return record(scene, limits, limits, steps, size)


# --- the data set -----------------------------------------------------------------------------------------------------


def test_a_clip_is_a_function_of_split_seed_and_index():
    x, y = synthetic_gestures("train", 3, samples=40)
    again, labels = synthetic_gestures("train", 3, samples=40)
    assert np.array_equal(x, again)
    assert np.array_equal(y, labels)
    fewer, _ = synthetic_gestures("train", 3, samples=7)
    assert np.array_equal(fewer, x[:7])
    assert not np.array_equal(fewer, synthetic_gestures("train", 4, samples=7)[0])
    assert not np.array_equal(fewer, synthetic_gestures("test", 3, samples=7)[0])


def test_shapes_and_types():
    x, y = synthetic_gestures("train", samples=23, steps=5, size=16)
    assert (x.shape, x.dtype) == ((23, 5, 2, 16, 16), np.uint8)
    assert (y.shape, y.dtype) == ((23,), np.int64)


def test_classes_are_those_of_dvs_gesture_and_balanced():
    assert len(GESTURES) == 11
    assert all(count % 11 == 0 for count in gestures.SAMPLES.values())
    _, y = synthetic_gestures("train", samples=55, size=8, steps=1)
    assert np.bincount(y).tolist() == [5] * 11


def test_no_two_clips_are_equal_within_or_between_splits():
    clips = [clip.tobytes() for split in ("train", "test") for clip in synthetic_gestures(split, samples=66)[0]]
    assert len(set(clips)) == 132


def test_the_same_is_drawn_everywhere():
    """What each clip is. Single events hang on the last bit of `exp`, `log` and `sin`, which numpy does not promise."""
    scene = scene_of(NAMES, seed=7)
    digest = hashlib.sha256(np.round(np.concatenate([scene.paths.ravel(), scene.tempo]), 9).tobytes()).hexdigest()
    assert digest.startswith("217d72cbc184d60c"), "results are compared on these very clips"


def test_the_test_split_is_drawn_from_wider_ranges():
    """Of size, speed, place and noise at least; nothing that is drawn is narrower."""
    for f in fields(TRAIN):
        low, high = getattr(TEST, f.name)
        assert low <= getattr(TRAIN, f.name)[0]
        assert getattr(TRAIN, f.name)[1] <= high
    for name in ("scale", "tempo", "across", "down"):
        assert getattr(TEST, name)[0] < getattr(TRAIN, name)[0]
    for name in ("scale", "tempo", "across", "down", "noise", "hot", "jitter"):
        assert getattr(TEST, name)[1] > getattr(TRAIN, name)[1]


def test_each_split_draws_from_its_own_ranges_and_stream(monkeypatch):
    seen = {}
    for split in ("train", "test"):
        calls = []
        monkeypatch.setattr(
            gestures, "draw", lambda u, y, r, size, calls=calls: calls.append((u, r)) or draw(u, y, r, size)
        )
        synthetic_gestures(split, samples=20, steps=1, size=8)
        seen[split] = np.concatenate([u for u, _ in calls])
        assert [r for _, r in calls] == [TRAIN if split == "train" else TEST] * len(calls)
    assert not (seen["train"] == seen["test"]).any()


def test_counts_stop_at_255(monkeypatch):
    """And steps only cut: the same events, whatever their number."""
    monkeypatch.setattr(gestures, "THRESHOLD", 0.02)
    monkeypatch.setattr(gestures, "MISMATCH", 0.0)
    monkeypatch.setattr(gestures, "noise", lambda rng, *, steps, size, **rest: np.zeros((steps, 2, size, size)))
    whole = synthetic_gestures("train", samples=11, steps=1)[0][:, 0]
    parts = synthetic_gestures("train", samples=11)[0]
    assert parts.max() < 255
    assert np.array_equal(whole, np.minimum(parts.sum(axis=1, dtype=int), 255))
    assert (parts.sum(axis=1, dtype=int) > 255).any()


@pytest.mark.parametrize("size", [32, 64])
def test_what_is_drawn_fills_its_range(size):
    y = np.zeros(4000, dtype=int)
    scene = draw(np.random.default_rng(0).random((4000, DRAWS)), y, TRAIN, size)
    pixels = size / 32
    drawn = {
        "scale": scene.look.scale / pixels,
        "across": scene.place[:, 0] / pixels,
        "down": scene.place[:, 1] / pixels,
        "tempo": scene.tempo,
        "contrast": np.abs(scene.look.arm),
        "noise": scene.noise,
    }
    for name, values in drawn.items():
        low, high = getattr(TRAIN, name)
        assert low <= values.min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < values.max() <= high, name
    assert (scene.look.arm > 0).mean() == pytest.approx(0.5, abs=0.05)  # polarity alone shows no direction


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"split": "valid"}, "valid"),
        ({"split": "train", "seed": -1}, "seed"),
        ({"split": "train", "steps": 0}, "steps"),
        ({"split": "train", "size": 4}, "size"),
        ({"split": "train", "samples": 0}, "samples"),
        ({"split": "train", "samples": 1.5}, "samples"),
        ({"split": "train", "steps": True}, "steps"),
        ({"split": "train", "size": "32"}, "size"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, word):
    with pytest.raises(UsageError, match=word):
        synthetic_gestures(**arguments)


# --- what moves -------------------------------------------------------------------------------------------------------


def flip_scene(scene: Scene) -> Scene:
    """The same scene in a mirror: arms swapped, everything that lies to the right to the left."""
    mirror = np.array([-1.0, 1.0])
    return replace(
        scene,
        look=replace(scene.look, slope=scene.look.slope * mirror),
        paths=scene.paths[:, ::-1],
        place=scene.place * mirror,
        sway=scene.sway * mirror,
        jitter=scene.jitter * mirror,
    )


@pytest.mark.parametrize(("name", "partner"), MIRRORED.items())
def test_left_is_right_in_a_mirror_to_the_last_bit(name, partner):
    """A flipped clip is a clip of the other class, drawn with the other sign."""
    one, other = (scene_of([n] * 4, seed=5, ranges=replace(TRAIN, posture=(0, 0))) for n in (name, partner))
    assert np.array_equal(flip_scene(one).paths, other.paths)
    assert np.array_equal(quiet(flip_scene(one)), quiet(one)[..., ::-1])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from(NAMES))
def test_the_picture_is_even_under_a_mirror(seed, name):
    scene = scene_of([name], seed)
    mirrored = flip_scene(scene)
    there = log_intensity(hands(scene, 0.3), place(scene, 0.3), scene.look, 24)
    back = log_intensity(hands(mirrored, 0.3), place(mirrored, 0.3), mirrored.look, 24)
    assert np.array_equal(there, back[..., ::-1])


@pytest.mark.parametrize("name", [n for n in NAMES if "clockwise" in n])
def test_clockwise_is_clockwise_as_the_camera_sees_it(name):
    scene = replace(scene_of([name] * 8), wobble=np.zeros(8))
    arm = 0 if name.startswith("right") else 1
    side = -1 if arm == 0 else 1  # the person's right arm is left in the image
    path = np.stack([hands(scene, t)[:, arm] * [side, 1] for t in np.linspace(0, 0.1, 3)])
    a, b = path[1] - path[0], path[2] - path[1]
    turn = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]  # y points down: positive is clockwise
    assert ((turn > 0) == ("counter" not in name)).all()


@pytest.mark.parametrize("name", ["right hand wave", "right arm clockwise", "left hand wave", "left arm clockwise"])
def test_one_arm_moves_where_one_is_named(name):
    scene = scene_of([name] * 3)
    moved = np.abs(hands(scene, 0.4) - hands(scene, 0.0)).max(axis=(0, 2))
    arm = 0 if name.startswith("right") else 1
    assert moved[arm] > 0.05
    assert moved[1 - arm] == 0


def test_sums_over_time_do_not_tell_the_sense_of_rotation():
    """Whole turns one way and the other leave the same events behind, but for what falls between two looks."""
    one, other = (
        replace(
            scene_of([name] * 6, ranges=replace(TRAIN, tempo=(1.25, 1.25), sway=(0, 0), jitter=(0, 0), posture=(0, 0))),
            wobble=np.zeros(6),
            phase=np.zeros(6),
        )
        for name in ("right arm clockwise", "right arm counter-clockwise")
    )
    there, back = (quiet(scene).sum(axis=1) for scene in (one, other))
    assert np.abs(there - back).sum() < 0.25 * there.sum()
    order = np.abs(quiet(one) - quiet(other)).sum()
    assert order > 4 * np.abs(there - back).sum()


@given(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9))
def test_elbows_leave_no_segment_longer_than_it_is(x, y):
    """In the image a segment looks as long as it is, or shorter where it points into depth."""
    hand = np.array([[[x, y]]])
    elbow = elbows(hand)
    stretch = max(1.0, np.hypot(x, y) / (2 * SEGMENT))
    for length in (np.linalg.norm(elbow), np.linalg.norm(hand - elbow)):
        assert length <= SEGMENT * stretch + 1e-9
    assert np.linalg.norm(elbow) == pytest.approx(np.linalg.norm(hand - elbow), abs=1e-9)


# --- what the camera sees ---------------------------------------------------------------------------------------------


def test_who_does_not_move_is_not_seen():
    scene = scene_of(NAMES)
    still = replace(scene, tempo=np.zeros(11), sway=np.zeros_like(scene.sway), jitter=np.zeros_like(scene.jitter))
    assert not quiet(still).any()
    assert quiet(replace(still, tempo=scene.tempo)).any(axis=(1, 2, 3, 4)).all()


def test_no_contrast_no_events():
    scene = scene_of(NAMES)
    nothing = np.zeros(11)
    assert not quiet(
        look_of(scene, arm=nothing, hand=nothing, torso=nothing, head=nothing, slope=np.zeros((11, 2)))
    ).any()


def test_brightness_the_other_way_round_changes_the_polarity():
    """On a small contrast, where the logarithm of a mixed pixel is nearly the mixture of logarithms."""
    scene = look_of(scene_of(["left hand wave"] * 4), slope=np.zeros((4, 2)), torso=np.zeros(4), head=np.zeros(4))
    limits = np.full((4, 32, 32), 0.02)
    bright = record(look_of(scene, arm=np.full(4, 0.1), hand=np.full(4, 0.1)), limits, limits, 16, 32)
    dark = record(look_of(scene, arm=np.full(4, -0.1), hand=np.full(4, -0.1)), limits, limits, 16, 32)
    assert np.abs(bright - dark[:, :, ::-1]).sum() < 0.1 * bright.sum()
    assert np.abs(bright - dark).sum() > bright.sum()


def test_steps_cut_the_same_seconds():
    scene = scene_of(NAMES)
    fine, coarse = quiet(scene, steps=16), quiet(scene, steps=4)
    assert np.array_equal(fine.reshape(11, 4, 4, 2, 32, 32).sum(axis=2), coarse)


def test_a_larger_picture_is_the_same_scene():
    fine, coarse = (quiet(scene_of(NAMES, size=size), size=size).sum(axis=(1, 2)) for size in (64, 32))
    pooled = fine.reshape(11, 32, 2, 32, 2).sum(axis=(2, 4))
    for a, b in zip(pooled, coarse, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.8


def test_a_limb_covers_its_area():
    """Soft edges add up: one arm's worth of pixels, wherever it lies between them."""
    look = Look(
        scale=np.full(2, 9.0), arm=np.full(2, 1.0), hand=np.full(2, 1.0), torso=np.zeros(2), head=np.zeros(2),
        slope=np.zeros((2, 2)),
    )  # fmt: skip
    still = np.tile([[[0.3, 0.6], [0.3, 0.6]]], (2, 1, 1))
    picture = np.exp(log_intensity(still, np.array([[0.0, 0.0], [0.37, -0.21]]), look, 64)) - 1
    areas = picture.sum(axis=(1, 2)) / (np.e - 1)
    assert areas[0] == pytest.approx(areas[1], rel=0.03)


def test_a_head_is_as_large_as_it_should_be():
    none = np.zeros(1)
    look = Look(scale=np.array([20.0]), arm=none, hand=none, torso=none, head=np.ones(1), slope=np.zeros((1, 2)))
    picture = np.exp(log_intensity(np.full((1, 2, 2), 0.4), np.array([[0.3, 0.4]]), look, 64)) - 1
    assert picture.sum() / (np.e - 1) == pytest.approx(np.pi * (HEAD * 20) ** 2, rel=0.02)
