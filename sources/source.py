"""What every data set that we can write as Parquet is: a stream of rows, and what their columns are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from storage.codec import BadRow, decode

Kind = Literal["bool", "int64", "string"]
CHECK_SIZE = 32  # side that images are decoded to when they are only checked; small, for the time it takes
MAX_PIXELS = 50_000_000  # of DataConfig.max_pixels: what a run would quarantine is skipped here


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its stable id, the image file's bytes and name, label (a class index, or a bool), split, and further columns."""

    id: str
    image: bytes
    path: str
    label: int | bool
    split: str
    columns: Mapping[str, bool | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be given, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: its rows (read once, in a fixed order), how many to expect, class names (empty: labels are bools) and further columns."""

    rows: Iterator[Row | Skipped]
    total: int
    classes: tuple[str, ...] = ()
    columns: Mapping[str, Kind] = field(default_factory=dict)


def unreadable(image: bytes) -> str | None:
    """Why a run would quarantine this image file, or None."""
    try:
        decode(image, size=CHECK_SIZE, crop=None, max_pixels=MAX_PIXELS)
    except BadRow as error:
        return str(error)
    return None


def split_of(id: str, test_fraction: float) -> str:
    """`test` for about that fraction of the ids, else `train`: by the id's hash, so that a row stays where it is when others come or go."""
    share = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test_fraction else "train"
