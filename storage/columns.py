"""An input's columns by what they mean, however each file writes them.

A name is that of a column, of a field inside a struct (`a.b`), or of a key in the names of the
folders that the file lies in (`key=value`, as Hive, Spark and Dask write partitions).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

FOLDER = b"folder"  # in a field's metadata: its values are from the folders' names
T = TypeVar("T", pa.RecordBatch, pa.Table)
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"  # the value of rows that have none


def partitions(url: str) -> dict[str, str | None]:
    """The columns that a file's folders are named for: `.../label=cat/x.parquet` has {"label":
    "cat"}.

    Values are texts, None for Hive's default partition; of one key twice the inner one counts.
    """
    found: dict[str, str | None] = {}
    for part in url.split("/")[:-1]:
        key, equals, value = part.partition("=")
        if key and equals:
            text = unquote(value)
            found[unquote(key)] = None if text == NULL_FOLDER else text
    return found


def type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of a column (of one that is there twice the first) or of a field `a.b`; None where
    there is none.
    """
    path = _path(schema, name)
    if path is None:
        return None
    kind = schema.field(schema.names.index(path[0])).type
    for part in path[1:]:
        kind = kind.field(part).type
    return kind


def with_partitions(schema: pa.Schema, url: str) -> pa.Schema:
    """A file's schema, and a text column for each key of its folders that is no column of it."""
    for key in partitions(url):
        if key not in schema.names:
            schema = schema.append(pa.field(key, pa.string(), metadata={FOLDER: key}))
    return schema


def from_folders(schema: pa.Schema) -> list[str]:
    """The columns that `with_partitions` has added."""
    return [field.name for field in schema if FOLDER in (field.metadata or {})]


def expect_columns(
    columns: Iterable[str], found: pa.Schema, like: dict[str, pa.DataType], url: str
) -> None:
    """ValueError where a file has not a column, has it twice, or with another meaning than in
    `like`, which gains what the file's types say first.

    found: the file's schema, `with_partitions`.
    """
    for name in columns:
        if (count := found.names.count(name)) > 1:
            raise ValueError(f"{url}: expected one column {name!r}, got {count} of that name")
        if (kind := type_of(found, name)) is None:
            close = difflib.get_close_matches(name, found.names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(found.names)}"
            raise ValueError(f"{url}: expected a column {name!r}, got none: {hint}")
        if meaning(kind) != "null" and not mean_the_same(like.setdefault(name, kind), kind):
            raise ValueError(f"{url}: expected column {name!r} as {like[name]}, got {kind}")


def mean_the_same(one: pa.DataType, other: pa.DataType) -> bool:
    """Do two types hold the same kind of values: texts, numbers, bytes (or a struct with them as
    `bytes`), times, lists or structs, however wide or encoded; null fits all.
    """
    kinds = meaning(one), meaning(other)
    return kinds[0] == kinds[1] or "null" in kinds


def meaning(kind: pa.DataType) -> str:
    """What the values of a type are, in a word; of a type with no kin its own name."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return meaning(kind.value_type)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return meaning(kind.field("bytes").type)
    return next((word for word, tests in KINDS.items() if any(t(kind) for t in tests)), str(kind))


def physical(columns: Sequence[str], schema: pa.Schema) -> list[str]:
    """What a Parquet reader is asked for to get the columns: keys of folders are not in the file,
    and a struct that is read whole brings its fields.
    """
    paths = {name: path for name in columns if (path := _path(schema, name))}
    whole = {path[0] for path in paths.values() if len(path) == 1}
    return [*whole, *(".".join(path) for path in paths.values() if path[0] not in whole)]


def assemble(batch: T, columns: Sequence[str], url: str) -> T:
    """The columns, in their order, of a batch or table with what `physical` names."""
    folders, arrays = partitions(url), []
    for name in columns:
        path = _path(batch.schema, name)
        if path is None:
            arrays.append(pa.repeat(pa.scalar(folders[name], pa.string()), batch.num_rows))
        elif len(path) == 1:
            arrays.append(batch.column(path[0]))
        else:
            arrays.append(pc.struct_field(batch.column(path[0]), path[1:]))  # null in a null struct
    return type(batch).from_arrays(arrays, names=list(columns))


def _path(schema: pa.Schema, name: str) -> list[str] | None:
    """A column's name, or a struct's and its fields'; None where there is none."""
    if name in schema.names:
        return [name]
    top = _top(schema, name)
    if top is None:
        return None
    path, kind = [top], schema.field(top).type
    for part in name[len(top) + 1 :].split("."):
        if pa.types.is_null(kind):
            return path  # null, and so is all that would be in it
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        path.append(part)
        kind = kind.field(part).type
    return path


def _top(schema: pa.Schema, name: str) -> str | None:
    """The struct column that a name `a.b` begins with, the longest where several do."""
    parts = name.split(".")
    tops = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((top for top in tops if schema.names.count(top) == 1), None)


KINDS = {
    "null": [pa.types.is_null],
    "number": [
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
    ],
    "text": [pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view],
    "bytes": [
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    ],
    "time": [pa.types.is_timestamp, pa.types.is_date],
    "list": [pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list],
    "struct": [pa.types.is_struct],
}
