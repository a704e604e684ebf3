"""Candidates of an audit: the new rows of each stratum, and those with the smallest keys."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.rows.read import cells_of
from actors.rows.targets import BadTarget, class_index
from configs.audit import CLASS, AuditConfig
from configs.schema import RunConfig
from configs.strict import UserError
from storage.names import Hashes, doubled, hashes
from storage.plan import iterate_shard
from storage.records import Shard

NO_VALUE = "(none)"
Values = tuple[str, ...]  # of a stratum, in the order of its columns


@dataclass
class Pool:
    """A stratum while the data are read: how many rows, and the rows with the smallest keys."""

    rows: int = 0
    heap: list[tuple[int, int, int, Any]] = field(default_factory=list)  # -key, shard, row, id

    def add(self, key: int, shard: int, row: int, name: Any, limit: int) -> None:
        """Count a row, and keep it where its key is among the `limit` smallest."""
        self.rows += 1
        entry = (-key, shard, row, name)
        if len(self.heap) < limit:
            heapq.heappush(self.heap, entry)
        elif entry > self.heap[0]:
            heapq.heapreplace(self.heap, entry)

    def smallest(self, count: int) -> list[tuple[int, int, Any]]:
        """Return the shard, row and id of the rows with the smallest keys."""
        return [entry[1:] for entry in heapq.nlargest(count, self.heap)]


def allocate(counts: Mapping[Values, int], budget: int) -> dict[Values, int]:
    """Return how many rows to draw of each stratum: equal shares, and what small ones cannot fill
    goes to the others.
    """
    found, left = {}, budget
    for place, (values, rows) in enumerate(
        sorted(counts.items(), key=lambda one: (one[1], one[0]))
    ):
        found[values] = min(rows, left // (len(counts) - place))
        left -= found[values]
    return found


def read_pools(
    shards: Sequence[Shard], config: AuditConfig, run: RunConfig, name: str, before: Hashes
) -> tuple[dict[Values, Pool], int, int]:
    """Return the new rows by stratum, the number of rows without a readable id, and of all rows.

    Reads the columns of ids and strata only.
    """
    assert run.data.id is not None
    columns = {key: run.data.label if key == CLASS else key for key in config.strata}
    wanted = list(dict.fromkeys([run.data.id, *(column for column in columns.values() if column)]))
    pools: dict[Values, Pool] = {}
    seen: list[Hashes] = []
    nameless = total = 0
    for shard in shards:
        position = 0
        for part in iterate_shard(shard, wanted, rows=1024):
            named = []
            for cells, lost in cells_of(part):
                own = cells.get(run.data.id)
                total += 1
                if own is None or lost:
                    nameless += 1
                else:
                    named.append((position, own, cells))
                position += 1
            found = hashes(str(own) for _, own, _ in named)
            seen.append(found)
            for (row, own, cells), old in zip(named, np.isin(found, before), strict=True):
                if not old:
                    values = tuple(
                        _value(key, cells.get(column or ""), run) for key, column in columns.items()
                    )
                    pool = pools.setdefault(values, Pool())
                    pool.add(_key(name, str(own)), shard.index, row, own, config.budget)
    if twice := doubled(seen):
        raise UserError(
            f"data.id: expected one row for each value of {run.data.id!r}, got {len(twice):,}"
            " values with several rows"
        )
    return pools, nameless, total


def _key(name: str, row: str) -> int:
    """Return a number that orders the rows of an audit at random, the same on every try."""
    digest = hashlib.blake2b(f"{name}\0{row}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _value(key: str, cell: Any, run: RunConfig) -> str:
    """Return a stratum's value as text; a class by its name."""
    classes = run.models["classifier"].classes
    if cell is None:
        return NO_VALUE
    if key == CLASS and classes:
        try:
            return classes[class_index(cell, classes, "label")]
        except BadTarget:
            return NO_VALUE
    return str(cell)
