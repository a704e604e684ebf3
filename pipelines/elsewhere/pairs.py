"""Writes originals and counterfactuals from two folders or two Parquet files as one table of pairs
into a run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet as pq

from actors.rows.files import with_files
from configs.schema import fingerprint
from configs.strict import UserError
from storage.columns import assemble, expect_columns, physical, with_partitions
from storage.schema import IMAGE
from storage.seal import read_sealed, sealed
from storage.tables import damage_named, to_parquet
from storage.uri import Store, data_files, readable

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
FOLDER, MARK = "input", "input/_pairs.json"
FILE_ROWS = 500
Say = Callable[[str], None]
Pair = dict[str, Any]


class Pairs(NamedTuple):
    """Pairs of images.

    of: identifies the pairs. types: the types of the further columns. rows: {"id", "image",
    "counterfactual", ...}.
    """

    of: dict[str, Any]
    types: dict[str, pa.DataType]
    rows: Iterator[Pair]


def from_folders(originals: Path, counterfactuals: Path, say: Say) -> Pairs:
    """Return the pairs of two folders, matched by path within the folder without the file ending.

    Where one folder lacks a name, the row has no image on that side. UserError where no name is in
    both folders, or where a name occurs twice.
    """
    ours, theirs = (images_in(folder, say) for folder in (originals, counterfactuals))
    both = ours.keys() & theirs.keys()
    if not both:
        raise UserError(
            f"expected files of the same names in {originals} and {counterfactuals}, got"
            f" {_some(ours)} and {_some(theirs)}"
        )
    for missing, where in (
        (ours.keys() - theirs.keys(), counterfactuals),
        (theirs.keys() - ours.keys(), originals),
    ):
        if missing:
            say(
                f"{len(missing):,} of {len(ours.keys() | theirs.keys()):,} names are not in"
                f" {where}: {_some(missing)}"
            )
    of = {
        side: fingerprint(
            [[n, f.stat().st_size, f.stat().st_mtime_ns] for n, f in sorted(found.items())]
        )
        for side, found in (("originals", ours), ("counterfactuals", theirs))
    }

    def pairs() -> Iterator[Pair]:
        for name in sorted(ours.keys() | theirs.keys()):
            files = {"image": ours.get(name), "counterfactual": theirs.get(name)}
            yield {
                "id": name,
                **{
                    column: file and _cell(file.read_bytes(), file.name)
                    for column, file in files.items()
                },
            }

    return Pairs(of, {}, pairs())


def images_in(folder: Path, say: Say) -> dict[str, Path]:
    """Return the image files of a folder and its subfolders, by path without the ending.

    UserError where there is no folder, no image, or one name twice.
    """
    if not folder.is_dir():
        raise UserError(f"expected a folder of images or a Parquet file at {folder}, got neither")
    found: dict[str, Path] = {}
    others = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if not file.is_file() or any(part.startswith(".") for part in parts):
            continue
        if file.suffix.lower() not in ENDINGS:
            others.append(readable("/".join(parts)))
            continue
        name = "/".join(parts).removesuffix(file.suffix)
        if readable(name) != name:
            say(f"{folder}: a file's name is not UTF-8, and it is left out: {readable(name)}")
            continue
        if name in found:
            raise UserError(
                f"{folder}: expected each name once, got {found[name].name} and {file.name}"
            )
        found[name] = file
    if others:
        say(
            f"{folder}: {len(others):,} files are no images by their ending and are left out:"
            f" {_some(others)}"
        )
    if not found:
        raise UserError(f"expected images ({' '.join(ENDINGS)}) in {folder}, got none")
    return found


def from_parquet(
    originals: tuple[str, str],
    counterfactuals: tuple[str, str],
    key: str,
    further: Sequence[str],
    say: Say,
) -> Pairs:
    """Return the pairs of two Parquet files, folders or globs, matched by the column `key`.

    originals, counterfactuals: (path, image column). further: columns of the originals to keep.
    UserError where a column is missing, an id occurs twice, or no id is on both sides.
    """
    ours, theirs = Side(*originals, key, further), Side(*counterfactuals, key)
    both = ours.places.keys() & theirs.places.keys()
    if not both:
        raise UserError(
            f"expected the same values of {key} in {ours.path} and {theirs.path}, got"
            f" {_some(ours.places)} and {_some(theirs.places)}"
        )
    for missing, where in (
        (ours.places.keys() - both, theirs.path),
        (theirs.places.keys() - both, ours.path),
    ):
        if missing:
            say(f"{len(missing):,} values of {key} are not in {where}: {_some(missing)}")

    def pairs() -> Iterator[Pair]:
        for name in [*ours.places, *(n for n in theirs.places if n not in ours.places)]:
            mine = (
                ours.row(name, further)
                if name in ours.places
                else dict.fromkeys([ours.column, *further])
            )
            made = theirs.row(name, ()) if name in theirs.places else {theirs.column: None}
            kept = {column: mine[column] for column in further}
            yield {
                "id": name,
                "image": _as_cell(mine[ours.column]),
                "counterfactual": _as_cell(made[theirs.column]),
                **kept,
            }

    of = {
        "originals": ours.version,
        "counterfactuals": theirs.version,
        "key": key,
        "further": list(further),
    }
    return Pairs(of, {name: ours.types[name] for name in further}, pairs())


class Side:
    """The Parquet files of one side, with the place of each id's row.

    Holds a few row groups in memory.
    """

    def __init__(self, path: str, column: str, key: str, further: Sequence[str] = ()) -> None:
        self.path, self.column, self.key = path, column, key
        self.places: dict[str, tuple[int, int, int]] = {}  # id -> file, row group, row in it
        try:
            self.files = data_files(path)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(str(error)) from None
        self.version = fingerprint(
            [[name, store.version(name)] for store, name in self.files] + [column]
        )
        self.types: dict[str, pa.DataType] = {}  # types of the columns, common to all files
        wanted = [column, key, *further]
        for number, (store, name) in enumerate(self.files):
            with damage_named(store.url(name)), store.parquet(name) as file:
                if not file.metadata.num_rows:
                    continue
                schema = with_partitions(file.schema_arrow, store.url(name))
                try:
                    expect_columns(wanted, schema, self.types, store.url(name))
                except ValueError as error:
                    raise UserError(str(error)) from None
                for group in range(file.num_row_groups):
                    ids = self._columns(file, group, [key], store.url(name))[key].to_pylist()
                    for at, one in enumerate(ids):
                        if one is None or str(one) in self.places:
                            raise UserError(
                                f"{store.url(name)}: expected each {key} once, got {one!r} again or"
                                " empty"
                            )
                        self.places[str(one)] = (number, group, at)
        for name in wanted:  # null in every row
            self.types.setdefault(name, pa.null())
        self._group = lru_cache(maxsize=4)(self._read)

    def row(self, name: str, further: Sequence[str]) -> Mapping[str, Any]:
        """Return the image column and the columns `further` of an id's row."""
        number, group, at = self.places[name]
        store, file = self.files[number]
        row = self._group(number, group, tuple(further)).slice(at, 1).to_pylist()[0]
        return with_files(row, [self.column], store.url(file))

    def _read(self, number: int, group: int, further: tuple[str, ...]) -> pa.Table:
        store, name = self.files[number]
        with damage_named(store.url(name)), store.parquet(name) as file:
            columns = list(dict.fromkeys([self.column, *further]))
            return self._columns(file, group, columns, store.url(name))

    @staticmethod
    def _columns(file: pq.ParquetFile, group: int, columns: list[str], url: str) -> pa.Table:
        table = file.read_row_group(group, columns=physical(columns, file.schema_arrow))
        return assemble(table, columns, url)


def write_pairs(store: Store, pairs: Pairs) -> str:
    """Write pairs into the run's folder, once, and return that folder.

    UserError where the run holds other pairs.
    """
    told = json.dumps(pairs.of, sort_keys=True)
    if store.exists(MARK):
        if read_sealed(store, MARK) != json.loads(told):
            raise UserError(
                f"{store.uri} holds other pairs, or the files have changed; nothing was changed:"
                " give another --name"
            )
        return store.url(FOLDER)
    number = 0
    while rows := list(islice(pairs.rows, FILE_ROWS)):
        columns: dict[str, pa.Array] = {
            "id": pa.array([row["id"] for row in rows], pa.string()),
            **{
                side: pa.array([row[side] for row in rows], IMAGE)
                for side in ("image", "counterfactual")
            },
            **{
                name: pa.array([row[name] for row in rows], kind)
                for name, kind in pairs.types.items()
            },
        }
        # images are compressed
        data = to_parquet(pa.table(columns), row_group_size=100, compression="none")
        store.write(f"{FOLDER}/pairs-{number:05d}.parquet", data)
        number += 1
    store.replace(MARK, sealed(json.loads(told)))
    return store.url(FOLDER)


def _cell(data: bytes, name: str) -> dict[str, Any]:
    return {"bytes": data, "path": name}


def _as_cell(value: Any) -> dict[str, Any] | None:
    """Return an image of either layout as a struct."""
    return value if value is None or isinstance(value, dict) else _cell(value, "")


def _some(names: Any) -> str:
    """Return a few of many names as text."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
