"""The input's files: their rows are counted from footers at planning, their
versions compared later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from storage.columns import expect_columns, type_of, with_partitions
from storage.records import InputFile
from storage.uri import Store, data_files

READERS = 16  # files read at the same time: each costs round trips in S3


def read_footers(
    path: str, rows: str | None, columns: Sequence[str] = ()
) -> tuple[list[InputFile], pa.Schema]:
    """Read the footers of a file, folder or glob in name order, up to the end of the selection.

    Returns the files and the schema of the first file that has rows, with its folders' keys as
    columns. A column that is null in this schema has the type of the first file where it is not
    null. columns: every file with rows must have them, with the same meaning. ValueError where a
    file is not Parquet, or a column is missing, twice there or has another meaning;
    FileNotFoundError where there are no files.
    """
    _, stop = bounds(rows)
    listed = data_files(path)
    files: list[InputFile] = []
    first: pa.Schema | None = None
    kinds: dict[str, pa.DataType] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for at in range(0, len(listed), READERS):
            for file, schema in pool.map(_footer, listed[at : at + READERS]):
                if hold_last_row(files, stop):
                    break
                files.append(file)
                if not file.rows:
                    continue
                first = schema if first is None else first
                expect_columns(columns, schema, kinds, file.file)
            if hold_last_row(files, stop):
                break
    return files, _filled(schema if first is None else first, kinds)


def first_schema(path: str) -> pa.Schema:
    """Return the schema of the first file that has rows, or else of the last file.

    It has the folders' keys as columns.
    """
    for place in data_files(path):
        file, schema = _footer(place)
        if file.rows:
            break
    return schema


def unchanged(files: Sequence[InputFile], path: str, rows: str | None) -> bool:
    """Return whether the input has the same file names and versions as in the plan.

    Lists the input and requests each file's version, but opens no file. Files after the end of the
    selection may be added or removed.
    """
    _, stop = bounds(rows)
    try:
        now = {store.url(name): (store, name) for store, name in data_files(path)}
        planned = [str(file.file) for file in files]
        if hold_last_row(files, stop):
            now = {url: place for url, place in now.items() if url <= planned[-1]}
        if list(now) != planned:
            return False
        with ThreadPoolExecutor(READERS) as pool:
            versions = pool.map(lambda place: place[0].version(place[1]), now.values())
            return all(
                file.version == version for file, version in zip(files, versions, strict=True)
            )
    except FileNotFoundError:
        return False


def hold_last_row(files: Sequence[InputFile], stop: int | None) -> bool:
    """Return whether the files hold the selection's last row."""
    return stop is not None and bool(files) and sum(file.rows for file in files) >= stop


def bounds(rows: str | None) -> tuple[int, int | None]:
    """Return the first row and the row after the last (None: to the end) of "a:b".

    ValueError names a text that is no such selection.
    """
    if rows is None:
        return 0, None
    match = re.fullmatch(r"(\d*):(\d*)", rows)
    if match is None:
        raise ValueError(f"expected rows as a slice like 5000:6000, got {rows!r}")
    first, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and stop <= first:
        raise ValueError(f"expected rows as a slice a:b with a < b, got {rows!r}")
    return first, stop


def _filled(schema: pa.Schema, kinds: dict[str, pa.DataType]) -> pa.Schema:
    """Return a schema whose null columns have the types from later files."""
    for name, kind in kinds.items():
        if (here := type_of(schema, name)) is not None and pa.types.is_null(here):
            field, at = pa.field(name, kind), schema.get_field_index(name)
            schema = schema.append(field) if at < 0 else schema.set(at, field)
    return schema


def _footer(place: tuple[Store, str]) -> tuple[InputFile, pa.Schema]:
    store, name = place
    version = store.version(name)  # before the footer, so that a change in between is noticed
    with store.parquet(name) as file:
        found = InputFile(store.url(name), name, version, file.metadata.num_rows)
        try:
            return found, with_partitions(file.schema_arrow, found.file)
        except pa.ArrowException as error:
            raise ValueError(
                f"{found.file}: expected types of columns that can be read, got"
                f" {' '.join(str(error).split())[:200]}"
            ) from None
