"""The common form of every data set that is written as Parquet: a stream of rows, and a description
of their columns.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.text import decode_text
from storage.codec import BadRow, decode

Kind = Literal["bool", "int64", "string"]
# side that images are decoded to for a check only; small, to save time
CHECK_SIZE = 32
MAX_PIXELS = 50_000_000  # as ImageData.max_pixels: skips what a run would quarantine


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: stable id, the image file's bytes and name, label (class index, bool, or None in a
    source without labels), split, further columns.

    mask: PNG bytes with an index into the source's regions for every pixel.
    """

    id: str
    image: bytes
    path: str
    label: int | bool | None
    split: str
    columns: Mapping[str, bool | int | str] = field(default_factory=dict)
    mask: bytes | None = None


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be used, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: rows (read once, in a fixed order), their number, class names (empty: bool
    labels), further columns.

    regions: the meaning of the values of every row's mask, in order; empty: rows have no masks.
    labelled: whether rows have labels; notes: lines for the user about what is skipped.
    """

    rows: Iterator[Row | Skipped]
    total: int
    classes: tuple[str, ...] = ()
    columns: Mapping[str, Kind] = field(default_factory=dict)
    regions: tuple[str, ...] = ()
    labelled: bool = True
    notes: tuple[str, ...] = ()


def unreadable(image: bytes) -> str | None:
    """Return the reason why a run would quarantine this image file, or None."""
    try:
        decode(image, size=CHECK_SIZE, crop=None, max_pixels=MAX_PIXELS)
    except BadRow as error:
        return str(error)
    return None


def png(image: NDArray[np.uint8]) -> bytes:
    """Return PNG bytes of (H,W,3) or (H,W) uint8. Uses compression level 1: 2.5 times as fast as
    the default, and 15 % larger on drawn faces.
    """
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def split_of(id: str, test_fraction: float) -> str:
    """Return `test` for about that fraction of the ids, else `train`. The id's hash decides, so a
    row keeps its split when others are added or removed.
    """
    share = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test_fraction else "train"


def read_text(path: Path) -> str:
    """Return a text file in UTF-8, or in UTF-16 where its first bytes indicate that. ValueError,
    with file and line, where it is neither.
    """
    return decode_text(path.read_bytes(), str(path))
