"""Division of the input into shards from Parquet footers alone, and reading of a shard's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import parquet as pq

from storage.columns import assemble, expect_columns, physical, with_partitions
from storage.errors import FileChanged as FileChanged  # exported from here, defined there
from storage.inputs import bounds, read_footers
from storage.records import InputFile, Shard
from storage.tables import is_damage
from storage.uri import Store, input_file

# rows decoded at a time, so that a file with one huge row group does not fill the memory
BATCH = 256
FEW = 16  # rows at a time where they are worked on as they arrive, and may be large


@dataclass(frozen=True)
class Unreadable:
    """A number of a shard's rows that cannot be read, and the reason, which names file and rows."""

    num_rows: int
    reason: str


def plan_shards(
    path: str, *, shard_rows: int, rows: str | None, columns: Sequence[str] | None = None
) -> tuple[list[Shard], pa.Schema]:
    """Return shards of at most `shard_rows` rows over a file, folder or glob, from footers alone.

    Also returns the first file's schema. rows: "a:b" selects as a Python slice would, from all
    files taken together in name order. columns: every file must have them, with the same meaning
    (`storage.columns`). ValueError where a file is not Parquet, or nothing is selected;
    FileNotFoundError where there are no files.
    """
    files, schema = read_footers(path, rows, columns or ())
    return cut(files, shard_rows=shard_rows, rows=rows, path=path), schema


def cut(files: Sequence[InputFile], *, shard_rows: int, rows: str | None, path: str) -> list[Shard]:
    """Return the shards of files from `read_footers`.

    ValueError, which names `path`, where nothing is selected.
    """
    if shard_rows < 1:
        raise ValueError(f"expected shard_rows >= 1, got {shard_rows}")
    first, stop = bounds(rows)
    shards: list[Shard] = []
    seen = offset = 0  # rows of the files so far, rows selected so far
    for file in files:
        start = max(first - seen, 0)
        end = file.rows if stop is None else min(stop - seen, file.rows)
        for at in range(start, end, shard_rows):
            size = min(shard_rows, end - at)
            shards.append(Shard(len(shards), file.file, file.name, file.version, at, size, offset))
            offset += size
        seen += file.rows
    if not shards:
        got = "none" if rows is None else f"{rows} of {seen} rows"
        raise ValueError(f"expected rows to work on in {path}, got {got}")
    return shards


def read_shard(shard: Shard, columns: list[str]) -> pa.Table:
    """Read exactly the shard's rows.

    Reads only the row groups that hold them, and only the requested columns. FileChanged where the
    file is not the planned one; ValueError names a missing column and the nearest existing one, or
    rows that cannot be read.
    """
    batches = []
    for part in iterate_shard(shard, columns, rows=BATCH):
        if isinstance(part, Unreadable):
            raise ValueError(part.reason)
        batches.append(part)
    return pa.Table.from_batches(batches)


def iterate_shard(
    shard: Shard, columns: list[str], *, rows: int = FEW
) -> Iterator[pa.RecordBatch | Unreadable]:
    """Yield what `read_shard` reads, at most `rows` rows in memory at a time.

    The last step checks the file once more. The rest of a row group after a damaged page cannot be
    read: these rows are yielded as Unreadable, in their place.
    """
    if not columns:
        raise ValueError("expected at least one column to read, got none")
    store, name = input_file(shard.file)
    _expect_version(shard, store, name)
    count = 0
    with store.parquet(name, streamed=True) as file:
        expect_columns(columns, with_partitions(file.schema_arrow, shard.file), {}, shard.file)
        wanted = list(dict.fromkeys(columns))
        stored = physical(wanted, file.schema_arrow)
        try:
            for batch in _rows(file, shard.start, shard.rows, stored, rows):
                count += batch.num_rows
                yield assemble(batch, wanted, shard.file)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise
            _expect_version(shard, store, name)
            for part in _one_by_one(file, shard, count, stored):
                count += part.num_rows
                if isinstance(part, pa.RecordBatch):
                    part = assemble(part, wanted, shard.file)
                yield part
    _expect_version(shard, store, name)  # again, because the file may have changed during the read
    if count != shard.rows:
        raise FileChanged(
            f"{shard.file}: expected {shard.rows} rows from {shard.start}, got {count}"
        )


def _rows(
    file: pq.ParquetFile, start: int, count: int, columns: list[str], size: int
) -> Iterator[pa.RecordBatch]:
    groups: list[int] = []  # the row groups that overlap
    begin = first = 0  # first rows of the current group and of the first one that overlaps
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if begin < start + count and end > start:
            if not groups:
                first = begin
            groups.append(group)
        begin = end
    at = first
    for batch in file.iter_batches(
        batch_size=size, row_groups=groups, columns=columns, use_threads=False
    ):
        low, high = max(start - at, 0), min(start + count - at, batch.num_rows)
        if low < high:
            yield batch.slice(low, high - low)
        at += batch.num_rows
        if at >= start + count:
            break


def _one_by_one(
    file: pq.ParquetFile, shard: Shard, done: int, columns: list[str]
) -> Iterator[pa.RecordBatch | Unreadable]:
    """Yield a shard's rows after the first `done`, each alone.

    Rows that cannot be read are yielded by row group.
    """
    begin, first, last = 0, shard.start + done, shard.start + shard.rows
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        at, stop = max(first, begin), min(last, end)
        begin = end
        if at >= stop:
            continue
        try:
            for batch in _rows(file, at, stop - at, columns, 1):
                at += batch.num_rows
                yield batch
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield Unreadable(stop - at, f"{shard.file}: rows {at}:{stop} cannot be read: {told}")


def _expect_version(shard: Shard, store: Store, name: str) -> None:
    try:
        version = store.version(name)
    except FileNotFoundError:
        version = "no such file"
    if version != shard.version:
        raise FileChanged(
            f"{shard.file} changed since it was planned: expected {shard.version}, got {version}"
        )
