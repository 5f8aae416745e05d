"""A few samples of a data set as a picture: an SVG that holds a PNG, or that PNG alone. Needs zlib, nothing else."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor

from regraft.data.splits import Dataset

TILE = 64  # pixels a side, about
GAP = 6
LINE = 18  # pixels for a line of text
LETTER = 6.2  # width of one
ROWS = 12  # with so many classes or fewer each has a row of its own
COLUMNS = 10
SHOWN = 100  # classes at most
BRIGHTER, DARKER = np.array([229, 72, 77]), np.array([59, 130, 246])  # red and blue that do on white and on black


@dataclass(frozen=True)
class Sheet:
    """Tiles `[R, C, h, w, 4]` uint8 (RGBA) in rows and columns, and what is written beside and above or below them."""

    title: str
    tiles: np.ndarray
    rows: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    below: tuple[str, ...] = ()


def sheet(data: Dataset) -> Sheet:
    """The first training samples of each class: images in a row or a grid; of events their sum, then single steps."""
    x, y = data.train.x, data.train.y
    classes = [int(k) for k in y.unique()[:SHOWN]]
    names = tuple(data.names[k] if k < len(data.names) else str(k) for k in classes)
    title = f"{data.name}: {len(data.train):,} training samples, {data.classes} classes"
    first = [torch.nonzero(y == k).flatten() for k in classes]
    if x.ndim == 5:
        shown = np.linspace(0, x.shape[1] - 1, min(x.shape[1], COLUMNS - 2)).round().astype(int).tolist()
        tiles = [[x[i[0]].sum(0, dtype=torch.float32), *(x[i[0], step].float() for step in shown)] for i in first]
        painted = np.stack([np.stack([_events(tile) for tile in row]) for row in tiles])
        heads = ("all steps", *(f"step {step + 1}" for step in shown))
        return Sheet(f"{title}; red: brighter, blue: darker", _enlarged(painted), rows=names, heads=heads)
    low, high = (0.0, 255.0) if x.dtype == torch.uint8 else (float(x[:1000].min()), float(x[:1000].max()))
    if len(classes) <= ROWS:
        each = [[_image(x[i[n]], low, high) if n < len(i) else None for n in range(COLUMNS)] for i in first]
        return Sheet(title, _enlarged(_filled(each)), rows=names)
    flat = [_image(x[i[0]], low, high) for i in first]
    grid = [[*flat[start : start + COLUMNS], *[None] * COLUMNS][:COLUMNS] for start in range(0, len(flat), COLUMNS)]
    return Sheet(title, _enlarged(_filled(grid)), below=names)


def _image(x: Tensor, low: float, high: float) -> np.ndarray:
    """`[C, H, W]` -> `[H, W, 4]`: colours if there are three channels, else their mean in grey."""
    values = ((x.float() - low) / max(high - low, 1e-12) * 255).clamp(0, 255)
    values = values if len(values) == 3 else values.mean(0, keepdim=True).expand(3, -1, -1)
    opaque = torch.full_like(values[:1], 255)
    return torch.cat([values, opaque]).permute(1, 2, 0).round().byte().numpy()


def _events(x: Tensor) -> np.ndarray:
    """Counts `[2, H, W]` (darker, brighter) -> `[H, W, 4]`; few events are faint, none are transparent."""
    counts = x.abs().numpy()
    total = counts.sum(0)
    share = counts[-1] / np.maximum(total, 1)
    colour = share[..., None] * BRIGHTER + (1 - share[..., None]) * DARKER
    busy = np.quantile(total[total > 0], 0.95) if (total > 0).any() else 1.0
    alpha = np.sqrt(np.minimum(total / max(busy, 1.0), 1.0)) * 255
    return np.concatenate([colour, alpha[..., None]], axis=-1).round().astype(np.uint8)


def _filled(rows: list[list[np.ndarray | None]]) -> np.ndarray:
    """`[R, C, h, w, 4]`, transparent where there is no tile."""
    empty = np.zeros_like(next(tile for tile in rows[0] if tile is not None))
    return np.stack([np.stack([empty if tile is None else tile for tile in row]) for row in rows])


def _enlarged(tiles: np.ndarray) -> np.ndarray:
    factor = max(1, round(TILE / tiles.shape[2]))
    return tiles.repeat(factor, axis=2).repeat(factor, axis=3)


def png(pixels: np.ndarray) -> bytes:
    """`[H, W, 4]` uint8 (RGBA) as a PNG file (ISO/IEC 15948)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * 4)], axis=1)  # no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def canvas(page: Sheet) -> np.ndarray:
    """The tiles of a sheet with gaps between them, `[H, W, 4]`; room for a line below each if one is written there."""
    r, c, h, w, _ = page.tiles.shape
    across, down = w + GAP, h + GAP + (LINE if page.below else 0)
    pixels = np.zeros((r * down, c * across, 4), np.uint8)
    for row in range(r):
        for column in range(c):
            top, left = row * down, column * across
            pixels[top : top + h, left : left + w] = page.tiles[row, column]
    return pixels


def svg(page: Sheet) -> str:
    """The sheet as one SVG file, readable on light and dark."""
    pixels = canvas(page)
    _, c, h, w, _ = page.tiles.shape
    left = GAP * 2 + (int(max(map(len, page.rows)) * LETTER) + GAP if page.rows else 0)
    top = LINE * (3 if page.heads else 2)
    height, width = pixels.shape[:2]
    whole = max(left + width + GAP, int(len(page.title) * LETTER * 1.4)), top + height + GAP
    down = h + GAP + (LINE if page.below else 0)

    def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
        return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'

    middle = [left + column * (w + GAP) + w / 2 for column in range(c)]
    parts = [text(GAP * 2, LINE * 1.2, page.title, kind="title")]
    parts += [text(left - GAP, top + row * down + h / 2 + 4, name, "end") for row, name in enumerate(page.rows)]
    parts += [text(x, top - GAP, head, "middle") for x, head in zip(middle, page.heads, strict=False)]
    parts += [
        text(middle[i % c], top + i // c * down + h + 12, name.replace("_", " "), "middle", "small")
        for i, name in enumerate(page.below)
    ]
    encoded = base64.b64encode(png(pixels)).decode("ascii")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole[0]}" height="{whole[1]}" '
            f'viewBox="0 0 {whole[0]} {whole[1]}" role="img" aria-label="{escape(page.title)}">',
            "<style>:root{color-scheme:light dark}rect{fill:#fff}text{fill:#333;font:11px system-ui,sans-serif}"
            ".title{font-size:13px;font-weight:600}.small{font-size:9px}image{image-rendering:pixelated}"
            "@media(prefers-color-scheme:dark){rect{fill:#16181d}text{fill:#d6d9e0}}</style>",
            '<rect width="100%" height="100%"/>',
            *parts,
            f'<image x="{left}" y="{top}" width="{width}" height="{height}" href="data:image/png;base64,{encoded}"/>',
            "</svg>",
            "",
        ]
    )
