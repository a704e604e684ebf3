"""Draws the rows of an audit: those not audited yet, in equal shares over the strata."""

from __future__ import annotations

import hashlib
import heapq
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from actors.modality import modality_of
from actors.rows.files import with_files
from actors.rows.read import cells_of
from actors.rows.targets import BadTarget, class_index
from configs.audit import CLASS, AuditConfig
from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.audit.ledger import Stratum
from pipelines.generate.plan import cut_data, named_columns
from storage.inputs import first_schema
from storage.names import Hashes, doubled, hashes
from storage.plan import cut, iterate_shard
from storage.records import Shard
from storage.schema import IMAGE, REGIONS
from storage.tables import to_parquet
from storage.uri import Store

STRATUM = "audit_stratum"  # column of the drawn rows: which stratum of the record
SCAN = 1 << 16  # rows of a file that are looked at with one open file
PART = 512  # rows of a file of drawn rows
NEAR = 1 << 12  # drawn rows that are closer are read with one open file
NO_VALUE = "(none)"
Values = tuple[str, ...]


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


@dataclass(frozen=True)
class Drawn:
    """The rows of an audit, written to a folder of the audits' folder."""

    folder: str
    strata: list[Stratum]
    ids: Hashes
    nameless: int


def draw(store: Store, config: AuditConfig, run: RunConfig, name: str, before: Hashes) -> Drawn:
    """Draw the rows of the audit `name` and write them, with their images, to a folder of its own.

    before: sorted hashes of the ids that are not drawn again. The rows of a stratum are chosen by a
    hash of the audit's name and the row's id: the same rows on every try, for any order of the
    data. UserError where no row is new, an id is there twice, or there are more strata than the
    budget.
    """
    files, _ = cut_data(run)
    shards = cut(files, shard_rows=SCAN, rows=run.data.rows, path=run.data.path)
    pools, nameless, total = read_pools(shards, config, run, name, before)
    if not pools:
        got = f"none of {total:,} rows" + (f" ({nameless:,} without an id)" if nameless else "")
        raise UserError(
            f"{run.data.path}: expected rows that were not audited yet under this classifier, got"
            f" {got}"
        )
    if len(pools) > config.budget:
        raise UserError(
            f"strata: expected at most as many as the budget of {config.budget:,} rows, got"
            f" {len(pools):,} combinations of {', '.join(config.strata)}"
        )
    counts = allocate({values: pool.rows for values, pool in pools.items()}, config.budget)
    chosen: list[tuple[int, int, Any, int]] = []
    strata = []
    for place, (values, count) in enumerate(sorted(counts.items())):
        chosen += [(*entry, place) for entry in pools[values].smallest(count)]
        told = dict(zip(config.strata, values, strict=True))
        strata.append(Stratum(told, pools[values].rows, count))
    folder = f"audits/{name}/rows-{uuid.uuid4().hex[:12]}"
    chosen.sort(key=lambda entry: entry[:2])
    write_rows(store, folder, run, shards, chosen)
    ids = hashes(str(entry[2]) for entry in chosen)
    return Drawn(folder, strata, ids, nameless)


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


def write_rows(
    store: Store,
    folder: str,
    run: RunConfig,
    shards: Sequence[Shard],
    chosen: Sequence[tuple[int, int, Any, int]],
) -> None:
    """Write drawn rows as Parquet, with their images' bytes; chosen: (shard, row, id, stratum)."""
    contents = list(modality_of(run.data).columns().values())
    columns = list(dict.fromkeys(named_columns(run).values()))
    regions = (first_schema(run.data.path).metadata or {}).get(REGIONS.encode())
    cells: dict[str, list[Any]] = {name: [] for name in [*columns, STRATUM]}
    part = 0

    def write() -> None:
        nonlocal part
        made = pa.table(
            {
                name: pa.array(values, IMAGE if name in contents else None)
                for name, values in cells.items()
            }
        ).replace_schema_metadata({REGIONS: regions} if regions else None)
        store.write(f"{folder}/{part:05d}.parquet", to_parquet(made))
        part += 1
        for values in cells.values():
            values.clear()

    for row in _read(run, shards, chosen, columns, contents):
        for name, values in cells.items():
            values.append(_content(row.get(name)) if name in contents else row.get(name))
        if len(cells[STRATUM]) >= PART:
            write()
    if cells[STRATUM]:
        write()


def _read(
    run: RunConfig,
    shards: Sequence[Shard],
    chosen: Sequence[tuple[int, int, Any, int]],
    columns: list[str],
    contents: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield the cells of drawn rows; a row that cannot be read has its id alone."""
    for span in _spans(chosen):
        shard, first, last = shards[span[0][0]], span[0][1], span[-1][1]
        wanted = {row: (name, stratum) for _, row, name, stratum in span}
        here = replace(shard, start=shard.start + first, rows=last - first + 1)
        row = first
        for part in iterate_shard(here, columns):
            for cells, lost in cells_of(part):
                if row in wanted:
                    name, stratum = wanted[row]
                    read = {} if lost else with_files(cells, contents, shard.file)
                    yield {**read, str(run.data.id): name, STRATUM: stratum}
                row += 1


def _spans(
    chosen: Sequence[tuple[int, int, Any, int]],
) -> Iterator[list[tuple[int, int, Any, int]]]:
    """Yield drawn rows in groups that are near each other in one shard."""
    group: list[tuple[int, int, Any, int]] = []
    for entry in chosen:
        if group and (entry[0] != group[-1][0] or entry[1] - group[-1][1] > NEAR):
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _content(cell: Any) -> dict[str, Any] | None:
    if cell is None:
        return None
    given = cell if isinstance(cell, Mapping) else {"bytes": cell}
    return {"bytes": given.get("bytes"), "path": given.get("path")}


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
