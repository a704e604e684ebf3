"""An input's columns by their meaning, independent of how each file writes them.

A name is that of a column, of a field inside a struct (`a.b`), or of a key in the names of the
file's folders (`key=value`, as Hive, Spark and Dask write partitions).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

FOLDER = b"folder"  # in a field's metadata: its values come from the names of folders
T = TypeVar("T", pa.RecordBatch, pa.Table)
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"  # the value of rows without one

# the meaning of a type's values, in a word
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


def partitions(url: str) -> dict[str, str | None]:
    """Return the columns in the names of a file's folders.

    `.../label=cat/x.parquet` has {"label": "cat"}. Values are texts, None for Hive's default
    partition. The inner folder counts where a key is there twice.
    """
    found: dict[str, str | None] = {}
    for part in url.split("/")[:-1]:
        key, equals, value = part.partition("=")
        if key and equals:
            text = unquote(value)
            found[unquote(key)] = None if text == NULL_FOLDER else text
    return found


def type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column or of a field `a.b`; None where there is none.

    The first column counts where a name is there twice.
    """
    path = _path(schema, name)
    if path is None:
        return None
    kind = schema.field(schema.names.index(path[0])).type
    for part in path[1:]:
        kind = kind.field(part).type
    return kind


def with_partitions(schema: pa.Schema, url: str) -> pa.Schema:
    """Return a file's schema with a text column for each key of its folders that it lacks."""
    for key in partitions(url):
        if key not in schema.names:
            schema = schema.append(pa.field(key, pa.string(), metadata={FOLDER: key}))
    return schema


def from_folders(schema: pa.Schema) -> list[str]:
    """Return the columns that `with_partitions` added."""
    return [field.name for field in schema if FOLDER in (field.metadata or {})]


def expect_columns(
    columns: Iterable[str], found: pa.Schema, like: dict[str, pa.DataType], url: str
) -> None:
    """Raise ValueError where a file lacks a column, has it twice, or has it with another meaning.

    found: the file's schema, `with_partitions`. like: the types of earlier files; this function
    adds the types that this file is the first to have.
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
    """Return whether two types hold the same kind of values, for any width or encoding.

    The kinds are texts, numbers, bytes (or a struct with them as `bytes`), times, lists and
    structs. Null matches all.
    """
    kinds = meaning(one), meaning(other)
    return kinds[0] == kinds[1] or "null" in kinds


def meaning(kind: pa.DataType) -> str:
    """Return the kind of a type's values, in a word; the type's own name where it has no kind."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return meaning(kind.value_type)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return meaning(kind.field("bytes").type)
    return next((word for word, tests in KINDS.items() if any(t(kind) for t in tests)), str(kind))


def physical(columns: Sequence[str], schema: pa.Schema) -> list[str]:
    """Return the columns that a Parquet reader must read for `columns`.

    Keys of folders are not in the file, and a struct that is read whole includes its fields.
    """
    paths = {name: path for name in columns if (path := _path(schema, name))}
    whole = dict.fromkeys(path[0] for path in paths.values() if len(path) == 1)
    return [*whole, *(".".join(path) for path in paths.values() if path[0] not in whole)]


def assemble(batch: T, columns: Sequence[str], url: str) -> T:
    """Return the columns, in their order, of a batch or table that holds those of `physical`."""
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
    """Return a column's name, or a struct's and its fields' names; None where there is none."""
    if name in schema.names:
        return [name]
    top = _top(schema, name)
    if top is None:
        return None
    path, kind = [top], schema.field(top).type
    for part in name[len(top) + 1 :].split("."):
        if pa.types.is_null(kind):
            return path  # the struct is null, and so are all its fields
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        path.append(part)
        kind = kind.field(part).type
    return path


def _top(schema: pa.Schema, name: str) -> str | None:
    """Return the struct column at the start of a name `a.b`, the longest where several match."""
    parts = name.split(".")
    tops = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((top for top in tops if schema.names.count(top) == 1), None)
