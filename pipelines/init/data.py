"""Finds the image, label, id and split columns of a data set and the sizes of its images.

It reads the schema and a sample of rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.rows.files import bytes_of, expect_bytes, with_files
from actors.rows.read import no_paths
from actors.rows.targets import BadTarget, class_index
from configs.schema import ImageData
from configs.strict import UserError, nearest
from pipelines.doctor.data import EACH, FACTS, FACTS_EACH, PLACES, rows_of, spread
from storage.codec import BadRow, dimensions
from storage.columns import meaning
from storage.plan import plan_shards
from storage.records import Shard
from storage.schema import holds_images
from storage.uri import data_files

LABELS = ("label", "labels", "class", "target", "category", "y")  # usual names, the likeliest first
IDS = ("id", "image_id", "uuid", "key", "file", "file_name", "filename", "path", "name")
SPLITS = {"train", "val", "valid", "validation", "test", "dev"}
TRUTH, INDICES, NAMES = "true or false", "indices", "names"  # kinds of labels
MOST_CLASSES = 1000
UNIQUE_ROWS = 1_000_000  # ids of a larger data set are not all compared
LARGEST = 256  # px: a working size above it is the user's choice


@dataclass(frozen=True)
class Label:
    """A column that can be a label.

    classes: in the order of their indices. counts: the sampled rows of each class.
    """

    column: str
    classes: list[str]
    counts: Counter[str]
    kind: str

    def fits(self, names: Sequence[str]) -> bool:
        """Return whether its cells mean classes of a classifier with these names, as a run reads
        them.
        """
        if self.kind == NAMES:
            return all(self.index(name, names) is not None for name in self.classes)
        if len(self.classes) == len(names):
            return True
        return self.kind == INDICES and self.classes == list(names[: len(self.classes)])

    def index(self, value: object, names: Sequence[str]) -> int | None:
        """Return the index of a cell's class among these names; None where there is none."""
        try:
            return class_index(value, names, "label")
        except BadTarget:
            return None


@dataclass(frozen=True)
class Found:
    """The findings about a data set.

    labels: the columns that can be a label, the likeliest first. sizes: width and height of the
    sampled images. sample: some of its rows.
    """

    path: str
    rows: int
    files: int
    image: str
    labels: list[Label]
    id: str | None
    split: str | None
    splits: Counter[str]
    sizes: Counter[tuple[int, int]]
    columns: list[str]
    sample: list[dict[str, Any]] = field(repr=False)

    def side(self, step: int, most: int = LARGEST) -> int:
        """Return a working size in px: the shorter side of the commonest image size.

        It is at most `most` and a multiple of `step`.
        """
        shorter = min(self.sizes.most_common(1)[0][0])
        return max(step, min(shorter, most) // step * step)


def look_at_data(path: str, label: str | None = None) -> Found:
    """Examine a Parquet file, folder or glob; label: the label's column, where it is known.

    UserError where no column holds images, or where none of the sampled images can be read.
    """
    try:
        shards, schema = plan_shards(path, shard_rows=2**62, rows=None)
    except (FileNotFoundError, ValueError, pa.ArrowException) as error:
        raise UserError(f"--data: {error}") from None
    images = [column.name for column in schema if holds_images(column.type)]
    images = images or [
        column.name
        for column in schema
        if meaning(column.type) == "text" and not no_paths(shards[0], column.name)
    ]
    if not images:
        told = ", ".join(f"{column.name} ({column.type})" for column in schema)
        raise UserError(f"--data: expected a column of images in {path}, got {told}")
    if label is not None and label not in schema.names:
        hint = nearest(label, schema.names)
        raise UserError(f"--label: expected a column of {path}, got {label!r}: {hint}")
    image = next((name for name in images if name.lower() in ("image", "img")), images[0])
    plain = [column.name for column in schema if _is_plain(column.type) and column.name != image]
    facts = _columns(spread(shards, FACTS, FACTS_EACH), plain)
    sample = [
        with_files(row, [image], shard.file)
        for shard in spread(shards, PLACES, EACH)
        for row, lost in rows_of(shard, [image, *plain])
        if not lost
    ]
    id = _find_id(shards, schema, plain)
    split = _find_split(facts)
    rest = [name for name in plain if name not in (id, split) and label in (None, name)]
    named = _class_names(schema)
    labels = [found for name in rest if (found := _label(name, facts[name], named.get(name)))]
    if label is not None and not labels:
        raise UserError(f"--label: expected 2 classes or more in the column {label!r}, got others")
    labels.sort(key=lambda found: (usual_rank(found.column), found.column not in named))
    return Found(
        path=path,
        rows=sum(shard.rows for shard in shards),
        files=len(data_files(path)),
        image=image,
        labels=labels,
        id=id,
        split=split,
        splits=Counter(facts[split]) if split else Counter(),
        sizes=_sizes(sample, image, path),
        columns=[column.name for column in schema],
        sample=sample,
    )


def is_image_folder(path: str) -> bool:
    """Return whether a path is a local folder without Parquet files."""
    folder = Path(path)
    return folder.is_dir() and next(folder.rglob("*.parquet"), None) is None


def _is_plain(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    return any(test(value) for test in tests)


def _columns(shards: Iterable[Shard], names: list[str]) -> dict[str, list[Any]]:
    """Return cells by column; empty where there are no columns."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for shard in shards if names else ():
        for row, lost in rows_of(shard, names):
            for name in names if not lost else ():
                found[name].append(row[name])
    return found


def _find_id(shards: Sequence[Shard], schema: pa.Schema, plain: list[str]) -> str | None:
    """Return the first column of distinct cells with a usual name or a name that ends in `_id`."""
    usual = [name for wanted in IDS for name in plain if name.lower() == wanted]
    if sum(shard.rows for shard in shards) > UNIQUE_ROWS:
        return None
    for name in [*usual, *(name for name in plain if name.lower().endswith("_id"))]:
        cells = _columns(shards, [name])[name]
        if None not in cells and len(set(cells)) == len(cells):
            return name
    return None


def _find_split(facts: dict[str, list[Any]]) -> str | None:
    """Return the column whose cells are names of splits."""
    return next(
        (
            name
            for name, cells in facts.items()
            if cells and {str(c).lower() for c in cells} <= SPLITS
        ),
        None,
    )


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the class names in Hugging Face's metadata, by column."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: one["names"] for name, one in told.items() if one.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _label(name: str, cells: list[Any], named: list[str] | None) -> Label | None:
    """Return the column as a label; None where its cells are not classes."""
    values = [cell for cell in cells if cell is not None]
    distinct = set(values)
    if not values or len(distinct) > min(MOST_CLASSES, len(values) / 2):
        return None
    if isinstance(values[0], bool):
        kind, classes = TRUTH, [f"not {name}", name]
    elif isinstance(values[0], int):
        if min(distinct) < 0 or max(distinct) >= MOST_CLASSES:
            return None
        kind, classes = INDICES, named or [str(i) for i in range(max(distinct) + 1)]
    else:
        numbers = all(value.isdecimal() for value in distinct)
        kind, classes = NAMES, sorted(distinct, key=int if numbers else None)
    if len(classes) < 2 or (isinstance(values[0], int) and max(distinct) >= len(classes)):
        return None
    shown = (classes[int(v)] if isinstance(v, int) else v for v in values)
    return Label(name, classes, Counter(shown), kind)


def usual_rank(column: str) -> int:
    """Return the place of a column among the usual names of labels; the last place where it is
    none.
    """
    return LABELS.index(column.lower()) if column.lower() in LABELS else len(LABELS)


def _sizes(sample: list[dict[str, Any]], image: str, path: str) -> Counter[tuple[int, int]]:
    sizes: Counter[tuple[int, int]] = Counter()
    reasons: Counter[str] = Counter()
    for row in sample:
        cell = row[image]
        try:
            expect_bytes(cell, "image")
            sizes[
                dimensions(
                    bytes_of(cell) or b"", max_pixels=ImageData.model_fields["max_pixels"].default
                )
            ] += 1
        except BadRow as reason:
            reasons[str(reason)] += 1
    if not sizes:
        ((why, _),) = reasons.most_common(1) or [("no rows", 0)]
        raise UserError(f"--data: expected images in the column {image!r} of {path}, got: {why}")
    return sizes
