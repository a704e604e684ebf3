"""Selects among several answers to one row in a training set: different ones, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from configs.schema import RunConfig
from storage.codec import decode
from storage.commit import GENERATE, commit_path, read_commit, read_committed, revisions
from storage.uri import Store

ALIKE, BEYOND = "like another answer to its row", "beyond augment.per_row"
Row = dict[str, Any]
Pixels = NDArray[np.uint8]


def select_apart(
    rows: Sequence[Row],
    images: Callable[[list[str], str], dict[str, Pixels]],
    least: float,
    most: int | None,
) -> tuple[list[Row], dict[str, int]]:
    """Return the selected rows of SCORES, in their order, and the number of other rows by reason.

    The answers to one row are taken in the order of k. An answer is selected where its mean
    absolute difference per pixel, in [0,1], to every answer selected before is at least `least`,
    until `most` are selected. images: returns a column's pictures by cf_id; called only for
    rows with several answers.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    several = [row["cf_id"] for group in groups.values() if len(group) > 1 for row in group]
    pictures = images(several, "counterfactual") if several and least else {}
    kept: set[str] = set()
    left_out = dict.fromkeys((ALIKE, BEYOND), 0)
    for group in groups.values():
        mine: list[str] = []
        for row in sorted(group, key=lambda row: row["k"]):
            name = row["cf_id"]
            if (
                mine
                and pictures
                and min(_distance(pictures[name], pictures[other]) for other in mine) < least
            ):
                left_out[ALIKE] += 1
            elif most is not None and len(mine) >= most:
                left_out[BEYOND] += 1
            else:
                mine.append(name)
        kept.update(mine)
    return [row for row in rows if row["cf_id"] in kept], left_out


def reader(
    store: Store, config: RunConfig, index: int
) -> Callable[[list[str], str], dict[str, Pixels]]:
    """Return a function that reads a column of stored images of a shard by their cf_id.

    It holds few rows at a time as Python objects.
    """

    def read(names: list[str], column: str) -> dict[str, Pixels]:
        commit = read_commit(store, commit_path(GENERATE, index, revisions(store, GENERATE)[index]))
        table = read_committed(store, commit, ["cf_id", column])
        found: dict[str, Pixels] = {}
        for batch in table.filter(pc.is_in(table["cf_id"], value_set=pa.array(names))).to_batches(
            max_chunksize=64
        ):
            for row in batch.to_pylist():
                data = config.data
                png = row[column]["bytes"]
                found[row["cf_id"]] = decode(
                    png, size=data.size, crop=None, max_pixels=data.max_pixels
                )
        return found

    return read


def _distance(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean()) / 255
