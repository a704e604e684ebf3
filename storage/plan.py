"""Cutting the input into shards from Parquet footers alone, and reading exactly one shard's rows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from storage.uri import data_files, split_url

BATCH = 256  # rows decoded at a time, so that a file with one huge row group does not fill the memory


class FileChanged(ValueError):  # noqa: N818 (said of the file)
    """An input file is not the one that was planned with."""


def plan_shards(
    path: str, *, shard_rows: int, rows: str | None, columns: Sequence[str] | None = None
) -> tuple[list[dict[str, Any]], pa.Schema]:
    """Shards of at most `shard_rows` rows over a file, folder or glob, and the first file's schema, from footers alone.

    rows: "a:b" selects as a Python slice would, from all files taken together in name order.
    A shard is {"index", "file", "name", "version", "start", "rows", "offset"}: rows start..start+rows of a file, which
    is `name` in its folder wherever that lies; the first of them is row `offset` of the selection.
    columns: every file must have them, with the first file's types.
    ValueError: not Parquet, or nothing selected; FileNotFoundError: no files.
    """
    if shard_rows < 1:
        raise ValueError(f"expected shard_rows >= 1, got {shard_rows}")
    first, stop = _slice(rows)
    shards: list[dict[str, Any]] = []
    schema: pa.Schema | None = None
    seen = offset = 0  # rows of the files so far, rows selected so far
    for store, name in data_files(path):
        if stop is not None and seen >= stop:
            break
        url, version = store.url(name), store.version(name)  # before the footer, so that a change in between is noticed
        with store.parquet(name) as file:
            count, found = file.metadata.num_rows, file.schema_arrow
        schema = found if schema is None else schema
        _expect_columns(columns or (), found, schema, url)
        start = max(first - seen, 0)
        end = count if stop is None else min(stop - seen, count)
        for at in range(start, end, shard_rows):
            size = min(shard_rows, end - at)
            where = {"file": url, "name": name, "version": version, "start": at, "rows": size}
            shards.append({"index": len(shards), **where, "offset": offset})
            offset += size
        seen += count
    if schema is None or not shards:
        raise ValueError(
            f"expected rows to work on in {path}, got {'none' if rows is None else f'{rows} of {seen} rows'}"
        )
    return shards, schema


def read_shard(shard: dict[str, Any], columns: list[str]) -> pa.Table:
    """Exactly the shard's rows, and of its file only the row groups they are in and the columns asked for.

    FileChanged if the file is not the one that was planned; ValueError names a missing column and the nearest there is.
    """
    if not columns:
        raise ValueError("expected at least one column to read, got none")
    store, name = split_url(shard["file"])
    _expect_version(shard, store.version(name))
    with store.parquet(name) as file:
        _expect_columns(columns, file.schema_arrow, file.schema_arrow, shard["file"])
        table = _rows(file, shard["start"], shard["rows"], list(dict.fromkeys(columns)))
    _expect_version(shard, store.version(name))  # again: it may have changed while it was read
    if table.num_rows != shard["rows"]:
        raise FileChanged(f"{shard['file']}: expected {shard['rows']} rows from {shard['start']}, got {table.num_rows}")
    return table


def _rows(file: pq.ParquetFile, start: int, count: int, columns: list[str]) -> pa.Table:
    groups: list[int] = []  # the row groups that overlap
    begin = first = 0  # where the group at hand and the first that overlaps begin
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if begin < start + count and end > start:
            if not groups:
                first = begin
            groups.append(group)
        begin = end
    batches, at = [], first
    for batch in file.iter_batches(batch_size=BATCH, row_groups=groups, columns=columns, use_threads=False):
        low, high = max(start - at, 0), min(start + count - at, batch.num_rows)
        if low < high:
            batches.append(batch.slice(low, high - low))
        at += batch.num_rows
        if at >= start + count:
            break
    schema = pa.schema([file.schema_arrow.field(name) for name in columns])
    return pa.Table.from_batches(batches).select(columns) if batches else schema.empty_table()


def _slice(rows: str | None) -> tuple[int, int | None]:
    if rows is None:
        return 0, None
    match = re.fullmatch(r"(\d*):(\d*)", rows)
    if match is None:
        raise ValueError(f"expected rows as a slice like 5000:6000, got {rows!r}")
    first, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and stop <= first:
        raise ValueError(f"expected rows as a slice a:b with a < b, got {rows!r}")
    return first, stop


def _expect_version(shard: dict[str, Any], version: str) -> None:
    if version != shard["version"]:
        raise FileChanged(f"{shard['file']} changed since it was planned: expected {shard['version']}, got {version}")


def _expect_columns(columns: Iterable[str], found: pa.Schema, like: pa.Schema, url: str) -> None:
    for name in columns:
        if name not in found.names:
            close = difflib.get_close_matches(name, found.names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(found.names)}"
            raise ValueError(f"{url}: expected a column {name!r}, got none: {hint}")
        if found.field(name).type != like.field(name).type:
            raise ValueError(
                f"{url}: expected column {name!r} as {like.field(name).type}, got {found.field(name).type}"
            )
