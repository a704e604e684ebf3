"""Finds rows of a training set that are also among held-out rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from actors.rows.files import bytes_of, with_files
from actors.rows.read import cells_of, split_column
from configs.schema import ImageData, RunConfig
from configs.strict import UserError, nearest
from pipelines.engine.committed import generated
from storage.codec import BadRow, decode
from storage.commit import read_committed
from storage.plan import iterate_shard, plan_shards
from storage.records import Shard
from storage.uri import Store

SAME_ID = "held out: the same id"
SAME_PIXELS = "held out: the same pixels"
NEAR_COPY = "held out: a near copy"
HASH_SIDE = 16  # 16 x 16 frequencies, 256 bits
DCT_SIDE = 4 * HASH_SIDE  # of the image whose frequencies are taken
NEAR = 16  # most different bits of a copy
CHUNK = 2048  # held-out hashes that are compared at a time
Pixels = NDArray[np.uint8]
Row = dict[str, Any]


@dataclass
class HeldOut:
    """Ids, digests of pixels and perceptual hashes of held-out images.

    unreadable: held-out rows without a usable image.
    """

    ids: set[str] = field(default_factory=set)
    pixels: set[bytes] = field(default_factory=set)
    hashes: list[Pixels] = field(default_factory=list)  # (32,) each
    rows: int = 0
    unreadable: int = 0

    def add(self, identity: str | None, image: Pixels) -> None:
        """Add one held-out image (H,W,3); identity: its row's id, None where it has none."""
        self.rows += 1
        if identity is not None:
            self.ids.add(identity)
        self.pixels.add(_digest(image))
        found = perceptual_hash(image)
        if found is not None:
            self.hashes.append(found)

    def without_leaks(
        self, rows: Sequence[Row], images: Callable[[list[str], str], dict[str, Pixels]]
    ) -> tuple[list[Row], dict[str, int]]:
        """Return the rows that are not held out, in their order, and the number of others by
        reason.

        A row is held out where its source has the id, where its original or its counterfactual has
        the pixels, or where its original has nearly the hash of a held-out row. images: returns a
        column's pictures by cf_id.
        """
        left_out = dict.fromkeys((SAME_ID, SAME_PIXELS, NEAR_COPY), 0)
        if not self.rows or not rows:
            return list(rows), left_out
        names = [row["cf_id"] for row in rows]
        originals = images(names, "original")
        near = self.near([perceptual_hash(originals[name]) for name in names])
        answers = images(names, "counterfactual")
        kept = []
        for row, copy in zip(rows, near, strict=True):
            pictures = originals[row["cf_id"]], answers[row["cf_id"]]
            if row["id"] in self.ids:
                left_out[SAME_ID] += 1
            elif any(_digest(picture) in self.pixels for picture in pictures):
                left_out[SAME_PIXELS] += 1
            elif copy:
                left_out[NEAR_COPY] += 1
            else:
                kept.append(row)
        return kept, left_out

    def near(self, hashes: Sequence[Pixels | None]) -> NDArray[np.bool_]:
        """Return which hashes differ from a held-out one in at most NEAR bits; not those that are
        None.
        """
        known = np.array([found is not None for found in hashes], dtype=np.bool_)
        near = np.zeros(len(hashes), dtype=np.bool_)
        if not known.any() or not self.hashes:
            return near
        # the product of two rows of -1 and 1 is the equal bits less the different ones
        mine = _signs([found for found in hashes if found is not None])
        found = np.zeros(len(mine), dtype=np.bool_)
        for start in range(0, len(self.hashes), CHUNK):
            equal = mine @ _signs(self.hashes[start : start + CHUNK]).T
            found |= ((HASH_SIDE**2 - equal) / 2 <= NEAR).any(1)
        near[known] = found
        return near


def perceptual_hash(image: Pixels) -> Pixels | None:
    """Return the 256 bits of an image (H,W,3) as (32,) uint8.

    The bits are the 16x16 lowest frequencies (DCT-II) of its brightness, scaled to 64x64, that are
    above their median: pHash (Zauner, 2010) with more bits, since on aligned faces 64 bits do not
    separate people. None where it has fewer than 16 pixels a side, or is of one colour: it does not
    have so many frequencies.
    """
    if min(image.shape[:2]) < HASH_SIDE:
        return None
    grey = Image.fromarray(image).convert("L")
    low, high = grey.getextrema()
    if low == high:
        return None
    if grey.size != (DCT_SIDE, DCT_SIDE):
        grey = grey.resize((DCT_SIDE, DCT_SIDE), Image.Resampling.LANCZOS)
    waves = _waves()
    found = waves @ np.asarray(grey, dtype=np.float64) @ waves.T
    bits: Pixels = np.packbits(found.ravel() > np.median(found))
    return bits


def read_held_out(store: Store, config: RunConfig) -> HeldOut:
    """Return the held-out rows: the run's rows of other splits than augment.splits, and the rows of
    the data set augment.held_out whose split, where it has that column, is another one.

    Images are as the run's settings read them. UserError where the data set cannot be read, has no
    images, or has no held-out row.
    """
    found = HeldOut()
    data, splits = config.data, config.augment.splits
    for commit in generated(store):
        # the images of shards without such rows are not read
        rows = read_committed(store, commit, ["k", "split"])
        others = [
            row["k"] == 0 and row["split"] is not None and row["split"] not in splits
            for row in rows.to_pylist()
        ]
        del rows
        if not any(others):
            continue
        table = read_committed(store, commit, ["id", "original"]).filter(others)
        for batch in table.to_batches(max_chunksize=64):
            for row in batch.to_pylist():
                png = row["original"]["bytes"]
                size, most = data.size, data.max_pixels
                found.add(row["id"], decode(png, size=size, crop=None, max_pixels=most))
        del table
    if config.augment.held_out is not None:
        before = found.rows
        for cells in _cells(data, config.augment.held_out, splits):
            try:
                content = bytes_of(cells[data.image])
                size, crop, most = data.size, data.crop, data.max_pixels
                image = decode(content, size=size, crop=crop, max_pixels=most)
            except BadRow:
                found.unreadable += 1
                continue
            identity = cells.get(data.id) if data.id else None
            found.add(None if identity is None else str(identity), image)
        if found.rows == before:
            raise UserError(
                f"augment.held_out: expected rows of other splits than {', '.join(splits)} in"
                f" {config.augment.held_out}, got none"
                + (f" ({found.unreadable} cannot be read)" if found.unreadable else "")
            )
    return found


def expect_held_out(config: RunConfig) -> None:
    """Raise UserError where augment.held_out is no data set with the image's column."""
    if config.augment.held_out is not None:
        _plan(config.data, config.augment.held_out)


def _plan(data: ImageData, path: str) -> tuple[list[Shard], pa.Schema]:
    try:
        shards, schema = plan_shards(path, shard_rows=2**62, rows=None)
        if data.image not in schema.names:
            raise ValueError(
                f"expected the column {data.image!r} (data.image) in {path}, got none:"
                f" {nearest(data.image, schema.names)}"
            )
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"augment.held_out: {error}") from None
    return shards, schema


def _cells(data: ImageData, path: str, splits: Sequence[str]) -> Iterator[Row]:
    """Yield the cells of a data set's held-out rows; those of a row that cannot be read are empty.

    It needs the image's column; those of id and split count where they are there.
    """
    shards, schema = _plan(data, path)
    split = split_column(data)
    wanted = (data.image, data.id, split)
    columns = [name for name in wanted if name and name in schema.names]
    for shard in shards:
        for part in iterate_shard(shard, columns):
            for stored, lost in cells_of(part):
                cells = {data.image: None} if lost else with_files(stored, [data.image], shard.file)
                if split is None or str(cells.get(split)) not in splits:
                    yield cells


def _signs(hashes: Sequence[Pixels]) -> NDArray[np.float32]:
    """Return the bits of N hashes as -1 and 1, (N,256)."""
    return np.unpackbits(np.stack(hashes), axis=1).astype(np.float32) * 2 - 1


def _waves() -> NDArray[np.float64]:
    """Return the 16 lowest cosines of the DCT-II over 64 places, (16,64)."""
    places = np.arange(DCT_SIDE) + 0.5
    return np.cos(np.pi / DCT_SIDE * np.outer(np.arange(HASH_SIDE), places))


def _digest(image: Pixels) -> bytes:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
