"""Input rows of a shard: read, decoded and checked, ahead of the method that waits for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import pyarrow as pa

from actors.modality import Modality
from actors.rows.files import bytes_of, with_files
from actors.rows.targets import BadTarget, class_index
from configs.schema import DataConfig, RunConfig, TargetConfig
from storage.codec import BadRow
from storage.plan import Unreadable, iterate_shard
from storage.records import Shard
from storage.schema import row_id

T = TypeVar("T")
TRAIN = "train"  # value of the column `data.split` for training; all other values are held out
LOOK = 16  # first rows, of which one must have its image where the data have paths
# errors of pyarrow on values that Python cannot represent
UNREADABLE = (ValueError, OverflowError, LookupError, pa.ArrowException)


@dataclass
class Row:
    """One readable input row on its way to a method."""

    id: str
    row: int
    content: Any  # as the run's modality reads it
    label: int | None
    split: str | None
    carried: dict[str, Any]


@dataclass
class Unusable:
    """One input row that cannot be used, and the reason."""

    id: str
    reason: str


@dataclass
class Record:
    """One input row as it is stored.

    position: in its shard; lost: the reason where it cannot be read.
    """

    id: str
    position: int
    cells: dict[str, Any]
    source: Any  # what its content is read from
    lost: str | None = None


def read(
    shard: Shard, data: DataConfig, target: TargetConfig, modality: Modality
) -> Iterator[Record]:
    """Yield a shard's rows as they are stored, a few in memory at a time; FileChanged as
    `read_shard`.

    Rows that cannot be read are included, with their id where it is readable, or else with their
    place.
    """
    contents = modality.columns().values()
    named = [
        *contents,
        data.label,
        data.id,
        *data.columns,
        target.column,
        split_column(data),
    ]
    columns = list(dict.fromkeys(name for name in named if name))
    position = 0
    for part in iterate_shard(shard, columns):
        listed = cells_of(part)
        if data.id and any(lost for _, lost in listed):
            here = replace(shard, start=shard.start + position, rows=len(listed))
            ids = (own for piece in iterate_shard(here, [data.id]) for own, _ in cells_of(piece))
            listed = [(cells or own, lost) for (cells, lost), own in zip(listed, ids, strict=True)]
        for stored, lost in listed:
            cells = with_files(stored, contents, shard.file)
            source = modality.source(cells)
            own = cells.get(data.id) if data.id else None
            place = f"{shard.name}#{shard.start + position}"
            name = str(own) if own is not None else row_id(source or b"", place)
            yield Record(name, position, cells, source, lost)
            position += 1


def cells_of(part: pa.RecordBatch | Unreadable) -> list[tuple[dict[str, Any], str | None]]:
    """Yield a part's rows as they are stored; no cells, and the reason, where one cannot be read.

    Python cannot represent some values: a date outside the years 1 to 9999, a time in a zone that
    is unknown here, a text that is not UTF-8.
    """
    if isinstance(part, Unreadable):
        return [({}, part.reason)] * part.num_rows
    try:
        return [(cells, None) for cells in part.to_pylist()]
    except UNREADABLE as error:
        if part.num_rows > 1:
            return [cells for i in range(part.num_rows) for cells in cells_of(part.slice(i, 1))]
        why = "Python has no such value, or no such time zone"
        if isinstance(error, UnicodeDecodeError):
            why = error.reason
        return [({}, f"{_culprit(part)} cannot be read: {why}")]


def _culprit(row: pa.RecordBatch) -> str:
    """Return the part of a row that makes it unreadable."""
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError:
            return f"a text of its {name!r}"
        except UNREADABLE:
            return f"its {name!r} ({column.type})"
    return "it"


def no_paths(shard: Shard, column: str) -> str | None:
    """Return what is wrong where a column of texts names no file in the shard's first rows.

    Returns None where one of these rows has a file.
    """
    first = replace(shard, rows=min(shard.rows, LOOK))
    rows = [cells for part in iterate_shard(first, [column]) for cells, _ in cells_of(part)]
    if any(bytes_of(with_files(cells, [column], shard.file).get(column)) for cells in rows):
        return None
    example = next((cells[column] for cells in rows if cells.get(column)), None)
    return (
        f"expected {column!r} as struct<bytes, path>, binary or paths of image files, got texts"
        f" such as {str(example)[:60]!r}, at which is no file: paths count from the data file's"
        " folder, or else from the current one"
    )


def split_column(data: DataConfig) -> str | None:
    """Return the column that separates train from test, where there is one."""
    return data.split if data.split not in (None, "train", "test") else None


def decoded(
    records: Iterable[Record],
    shard: Shard,
    config: RunConfig,
    classes: Sequence[str],
    seen: set[str],
    modality: Modality,
) -> Iterator[Row | Unusable]:
    """Yield each record as a row, or with the reason why it cannot be one.

    seen: ids so far; each id is used once.
    """
    for record in records:
        try:
            if record.id in seen:
                raise BadRow("its id stands twice in the data")
            seen.add(record.id)
            yield as_row(record, shard.offset + record.position, config, classes, modality)
        except (BadRow, BadTarget) as reason:
            yield Unusable(record.id, str(reason))


def as_row(
    record: Record,
    number: int,
    config: RunConfig,
    classes: Sequence[str],
    modality: Modality,
) -> Row:
    """Return a record as a row, with its content read and its label as an index.

    BadRow or BadTarget with the reason where this fails.
    """
    data, cells = config.data, record.cells
    if record.lost is not None:
        raise BadRow(record.lost)
    label = class_index(cells[data.label], classes, "label") if data.label else None
    content = modality.read(cells, record.source)
    column = split_column(data)
    split = cells[column] if column else data.split
    carried = [
        *data.columns,
        *([config.target.column] if config.target.column else []),
    ]
    return Row(
        record.id,
        number,
        content,
        label,
        None if split is None else str(split),
        {name: cells[name] for name in carried},
    )


class Ahead(Generic[T]):
    """An iterator run in a background thread, at most `most` items ahead of its reader.

    The reader also gets its errors. waited: seconds that the reader has spent waiting for items.
    """

    def __init__(self, items: Iterator[T], most: int) -> None:
        self.waited = 0.0
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(most)
        self._closed = threading.Event()
        threading.Thread(target=self._run, args=(items,), daemon=True, name="ahead").start()

    def __iter__(self) -> Iterator[T]:
        while True:
            since = time.perf_counter()
            kind, value = self._ready.get()
            self.waited += time.perf_counter() - since
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value

    def close(self) -> None:
        """Stop the background thread, even where items are left to read."""
        self._closed.set()

    def _run(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, value: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put((kind, value), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
