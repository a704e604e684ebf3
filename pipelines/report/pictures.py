"""Pictures of what changed in a row, as data URIs of bounded size.

A change is drawn as a heat overlay and as an amplified difference.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.codec import encode

Pixels = NDArray[np.uint8]

# Fractions of the scale and their RGB: like a black body, dark to light, in even steps.
HEAT = (
    (0.0, (10, 8, 20)),
    (0.2, (74, 22, 92)),
    (0.45, (178, 42, 78)),
    (0.7, (243, 116, 40)),
    (0.88, (252, 196, 66)),
    (1.0, (255, 248, 206)),
)


def change(before: Pixels, after: Pixels) -> NDArray[np.float32]:
    """Return how much each pixel changed, as (H, W) in [0,1].

    It is the mean absolute difference over the channels of two (H, W, 3) images. ValueError where
    their shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"expected a pair of images of one shape, got {before.shape} and {after.shape}"
        )
    gap = np.abs(before.astype(np.float32) - after.astype(np.float32))
    return np.asarray(gap.mean(axis=2) / 255, dtype=np.float32)


def full_scale(changes: list[NDArray[np.float32]]) -> float:
    """Return the change that a page draws in full colour, at least 4/255.

    It is the upper quartile over the pictures' 99th percentiles.
    """
    tops = [float(np.quantile(one, 0.99)) for one in changes]
    return max(float(np.quantile(tops, 0.75)) if tops else 0.0, 4 / 255)


def colours(level: NDArray[Any]) -> NDArray[np.float64]:
    """Return the heat colours (..., 3), 0 to 255, of levels in [0,1]."""
    stops = np.array([stop for stop, _ in HEAT])
    rgb = np.array([colour for _, colour in HEAT], dtype=np.float64)
    return np.stack([np.interp(level, stops, rgb[:, c]) for c in range(3)], axis=-1)


def opacity(level: NDArray[Any]) -> NDArray[np.float32]:
    """Return how opaque heat colours are over a picture, for levels in [0,1].

    Low levels are transparent, so that the picture is still visible under them.
    """
    return np.asarray(np.clip((level - 0.06) / 0.34, 0, 1) ** 0.8, dtype=np.float32)


def overlay(before: Pixels, changed: NDArray[np.float32], scale: float) -> Pixels:
    """Return the original in dim grey with the change over it in heat colours: (H, W, 3)."""
    grey = before.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    ground = (38 + 0.42 * grey)[..., None] * np.array([0.94, 0.97, 1.06], dtype=np.float32)
    level = np.clip(changed / scale, 0, 1)
    share = opacity(level)[..., None]
    heat = colours(level)
    return np.asarray(np.clip(ground * (1 - share) + heat * share, 0, 255), dtype=np.uint8)


def amplified(before: Pixels, after: Pixels, scale: float) -> Pixels:
    """Return the absolute difference per channel, amplified so that `scale` becomes white: (H, W,
    3).
    """
    gap = np.abs(before.astype(np.float32) - after.astype(np.float32)) / 255
    return np.asarray(np.clip(gap / scale, 0, 1) * 255, dtype=np.uint8)


def data_uri(image: Pixels, budget: int, stored: bytes | None = None) -> str:
    """Return a data URI of about `budget` bytes at most.

    It holds the stored PNG, or a PNG made here, if that fits the budget, else a JPEG.
    """
    png = stored or encode(image)
    if len(png) <= budget:
        return _uri("png", png)
    picture, data = Image.fromarray(image), b""
    for side in (256, 192, 128, 96, 64):
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        data = buffer.getvalue()
        if len(data) <= budget:
            break
    return _uri("jpeg", data)


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
