"""What every data set that we can write as Parquet is: a stream of rows, and what their columns
are.
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
# side that images are decoded to when they are only checked; small, for the time it takes
CHECK_SIZE = 32
MAX_PIXELS = 50_000_000  # of ImageData.max_pixels: what a run would quarantine is skipped here


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: stable id, the image file's bytes and name, label (class index, bool, or None in
    a source without labels), split, further columns.

    mask: PNG bytes of what every pixel shows, indices into the source's regions.
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
    """A row that cannot be given, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: rows (read once, in a fixed order), how many, class names (none: bool labels),
    further columns.

    regions: what the values of every row's mask mean, in their order; none: rows have no masks.
    labelled: rows have labels; notes: lines for the user, on what is left out.
    """

    rows: Iterator[Row | Skipped]
    total: int
    classes: tuple[str, ...] = ()
    columns: Mapping[str, Kind] = field(default_factory=dict)
    regions: tuple[str, ...] = ()
    labelled: bool = True
    notes: tuple[str, ...] = ()


def unreadable(image: bytes) -> str | None:
    """Why a run would quarantine this image file, or None."""
    try:
        decode(image, size=CHECK_SIZE, crop=None, max_pixels=MAX_PIXELS)
    except BadRow as error:
        return str(error)
    return None


def png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of (H,W,3) or (H,W) uint8: level 1 is 2.5 times as fast as the default, 15 % larger
    on drawn faces.
    """
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def split_of(id: str, test_fraction: float) -> str:
    """`test` for about that fraction of the ids, else `train`: by hash, so rows stay when others
    come or go.
    """
    share = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test_fraction else "train"


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 where its first bytes say so; ValueError names file and
    line where it is neither.
    """
    return decode_text(path.read_bytes(), str(path))
