"""Copies the drawn rows of an audit, with their images, so that the data may change afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from actors.modality import modality_of
from actors.rows.files import with_files
from actors.rows.read import cells_of
from configs.schema import RunConfig
from pipelines.generate.plan import named_columns
from storage.inputs import first_schema
from storage.plan import iterate_shard
from storage.records import Shard
from storage.schema import IMAGE, REGIONS
from storage.tables import to_parquet
from storage.uri import Store

STRATUM = "audit_stratum"  # column of the drawn rows: which stratum of the record
PART = 512  # rows of a file of drawn rows
NEAR = 1 << 12  # drawn rows that are closer are read with one open file
Chosen = tuple[int, int, Any, int]  # shard, row in it, id, stratum


def write_rows(
    store: Store,
    folder: str,
    run: RunConfig,
    shards: Sequence[Shard],
    chosen: Sequence[Chosen],
) -> None:
    """Write drawn rows as Parquet, with their images' bytes."""
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
    chosen: Sequence[Chosen],
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
    chosen: Sequence[Chosen],
) -> Iterator[list[Chosen]]:
    """Yield drawn rows in groups that are near each other in one shard."""
    group: list[Chosen] = []
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
