"""Pictures of samples: a PNG that decodes to what was put in, in an SVG that is XML and needs nothing else."""

from __future__ import annotations

import base64
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import Augmentation, Dataset, Split
from regraft.data.picture import GAP, canvas, png, sheet, svg


def dataset(x: torch.Tensor, y: torch.Tensor, names: tuple[str, ...] = ()) -> Dataset:
    split = Split(x, y)
    return Dataset("made <up>", split, split, split, int(y.max()) + 1, Augmentation(), names)


def decoded(content: bytes) -> np.ndarray:
    """The pixels of a PNG without filters, its checksums checked."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        chunks[kind] = content[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", content[at + 8 + length : at + 12 + length])
        assert crc == zlib.crc32(kind + chunks[kind])
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour, list(chunks)) == (8, 6, [b"IHDR", b"IDAT", b"IEND"])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * 4)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 4)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_a_png_holds_the_pixels(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4)).astype(np.uint8)
    assert np.array_equal(decoded(png(pixels)), pixels)


def test_each_class_has_a_row_of_its_own_samples():
    y = torch.tensor([0, 2, 1, 0, 2])
    x = (torch.arange(5) * 50).byte().reshape(5, 1, 1, 1).expand(5, 3, 4, 4)
    page = sheet(dataset(x, y, ("a", "b", "c")))
    assert page.rows == ("a", "b", "c")
    assert page.tiles.shape == (3, 10, 64, 64, 4)
    assert page.tiles[:, :3, 0, 0, 0].tolist() == [[0, 150, 0], [100, 0, 0], [50, 200, 0]]
    assert page.tiles[:, :3, 0, 0, 3].tolist() == [[255, 255, 0], [255, 0, 0], [255, 255, 0]]


def test_many_classes_stand_in_a_grid_with_their_names_below():
    x, y = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8), torch.arange(30) % 15
    page = sheet(dataset(x, y, tuple(f"name_{k}" for k in range(15))))
    assert page.tiles.shape == (2, 10, 64, 64, 4)
    assert page.below == tuple(f"name_{k}" for k in range(15))
    assert torch.equal(torch.from_numpy(page.tiles[1, 4, ::2, ::2, :3].copy()), x[14].permute(1, 2, 0))
    assert len(canvas(page)) == 2 * (64 + GAP + 18)
    assert "name 14" in svg(page)
    assert sheet(dataset(torch.zeros(150, 1, 8, 8), torch.arange(150))).tiles.shape[:2] == (10, 10)


def test_events_show_their_sum_and_then_steps_in_two_colours():
    x = torch.zeros(1, 3, 2, 32, 32, dtype=torch.uint8)
    x[0, 0, 1, 0, 0] = 200  # brighter
    x[0, 1, 0, 0, 1] = 200  # darker; their sum over steps is more than a byte holds
    x[0, 2, 0, 0, 1] = 200
    page = sheet(dataset(x, torch.tensor([0])))
    assert page.heads == ("all steps", "step 1", "step 2", "step 3")
    tiles = page.tiles[0, :, ::2, ::2]
    assert (tiles[:, 0, 0, 3] > 0).tolist() == [True, True, False, False]
    assert (tiles[:, 0, 1, 3] > 0).tolist() == [True, False, True, True]
    assert tiles[0, 0, 1, 3] == 255
    red, blue = tiles[0, 0, 0], tiles[0, 0, 1]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert not tiles[:, 1:, :, 3].any(), "no event, no colour: light or dark shines through"


@pytest.mark.parametrize(
    "shape", [(1, 1, 8, 8), (2, 3, 32, 32), (2, 6, 2, 34, 34), (3, 5, 16, 16), (1, 2, 2, 128, 128)]
)
def test_an_svg_is_whole_and_holds_the_png(shape):
    data = dataset(torch.randn(shape), torch.arange(shape[0]), tuple("<&>")[: shape[0]])
    text = svg(sheet(data))
    root = ElementTree.fromstring(text)
    (image,) = [element for element in root.iter() if element.tag.endswith("image")]
    pixels = decoded(base64.b64decode(image.get("href").removeprefix("data:image/png;base64,")))
    assert pixels.shape[:2] == (int(image.get("height")), int(image.get("width")))
    assert float(root.get("width")) >= float(image.get("x")) + pixels.shape[1]
    assert float(root.get("height")) >= float(image.get("y")) + pixels.shape[0]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), "nothing is fetched"
    assert "prefers-color-scheme:dark" in text
