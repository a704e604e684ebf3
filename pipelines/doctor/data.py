"""The doctor's checks of the data: files, columns, a sample of decoded rows, labels, splits,
ids.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from actors.modality import as_tensor
from actors.rows.files import bytes_of, expect_bytes, with_files
from actors.rows.masks import mask_of
from actors.rows.names import contradiction, unlike
from actors.rows.read import cells_of, no_paths
from actors.rows.targets import BadTarget, class_index
from configs.schema import ImageData, RunConfig
from configs.strict import nearest
from pipelines.doctor.finding import Finding, format_commonest, ok, one_line, problem, warning
from storage.codec import BadRow, decode, sides
from storage.columns import from_folders, meaning, type_of
from storage.inputs import first_schema
from storage.plan import Unreadable, iterate_shard, plan_shards
from storage.records import Shard
from storage.schema import holds_images

PLACES, EACH = 16, 6  # the sample of images: the number of places in the data, and of rows at each
FACTS, FACTS_EACH = 40, 500  # the same for labels, splits and ids, which cost little
ORIENTATION = 0x0112  # EXIF tag
FORM = ("image: neither", "image mode")  # reasons of `decode` that another image format solves
LOST = ""  # key in a row's cells: the reason why the row cannot be read


@dataclass
class Sample:
    """Decoded rows spread over the data.

    rows: the number of all selected rows. images: (n,size,size,3) uint8. records: their other
    columns. facts: the same of many more rows, without masks. schema: the files' schema.
    """

    rows: int
    images: NDArray[np.uint8]
    records: list[dict[str, Any]]
    facts: dict[str, list[Any]]
    schema: pa.Schema

    @property
    def columns(self) -> list[str]:
        """Return the names of all columns in the data."""
        return list(self.schema.names)

    def tensor(self) -> Tensor:
        """Return the images as models see them: (n,3,size,size) float32 in [0,1]."""
        return as_tensor(self.images, torch.device("cpu"))


def check_data(config: RunConfig, extra: Sequence[str]) -> tuple[list[Finding], Sample | None]:
    """Check files, columns and a sample of rows.

    Returns the findings and the sample, None where the data cannot be read. extra: further columns
    to sample where they exist (true attributes).
    """
    data = config.data
    try:
        schema, wanted = first_schema(data.path), named_columns(config)
        there = {key: name for key, name in wanted.items() if type_of(schema, name) is not None}
        shards, schema = plan_shards(
            data.path, shard_rows=2**62, rows=data.rows, columns=list(there.values())
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        return [problem("data", str(error), "mend data.path or data.rows")], None
    rows = sum(shard.rows for shard in shards)
    found = [ok("data", f"{rows:,} rows in {len(shards)} files at {data.path}")]
    first, _, stop = (data.rows or ":").partition(":")
    if stop and int(stop) - int(first or 0) > rows:
        text = (
            f"expected {int(stop) - int(first or 0):,} rows by {data.rows}, got {rows:,}: the data"
            " end before"
        )
        found.append(warning("data.rows", text))
    for key, name in wanted.items():
        if key not in there:
            found.append(
                problem(
                    key,
                    f"expected a column of {data.path}, got {name!r}",
                    nearest(name, schema.names),
                )
            )
        elif name in from_folders(schema):
            found.append(ok(key, f"read from the folders' names, {name}=..."))
    found += _types(there, schema, shards[0])
    if any(f.level == "problem" for f in found):
        return found, None
    facts_columns = [name for key, name in there.items() if key not in ("data.image", "data.mask")]
    facts_columns += [name for name in extra if name in schema.names]
    facts_columns = list(dict.fromkeys(facts_columns))
    masks = [data.mask] if data.mask else []
    columns = list(dict.fromkeys([data.image, *masks, *facts_columns]))
    try:
        cells, outside = [], 0  # rows, and the number of them whose image is a path
        for shard in spread(shards, PLACES, EACH):
            for row, lost in rows_of(shard, columns):
                filled = with_files(row, [data.image, *masks], shard.file)
                outside += lost is None and filled[data.image] is not row[data.image]
                cells.append({LOST: lost} if lost else filled)
        facts: dict[str, list[Any]] = {name: [] for name in facts_columns}
        for shard in spread(shards, FACTS, FACTS_EACH) if facts_columns else ():
            for row, lost in rows_of(shard, facts_columns):
                for name in facts_columns if lost is None else ():
                    facts[name].append(row[name])
    except (OSError, ValueError, pa.ArrowException) as error:
        return [
            *found,
            problem("data", f"reading rows failed: {error}", "write the file again"),
        ], None
    if outside:
        text = f"{outside} of {len(cells)} sampled rows: null bytes, and a path, which is read"
        found.append(ok("data.image", text))
    images, records = _decoded(cells, data, rows, found)
    return [*found, *_facts(facts, config)], Sample(rows, images, records, facts, schema)


def named_columns(config: RunConfig) -> dict[str, str]:
    """Return the column by setting, for every column that the run reads."""
    data = config.data
    split = data.split if data.split not in ("train", "test") else None
    named = {
        "data.image": data.image,
        "data.mask": data.mask,
        "data.label": data.label,
        "data.id": data.id,
        "data.split": split,
    }
    named |= {f"data.columns[{i}]": name for i, name in enumerate(data.columns)}
    named["target.column"] = config.target.column
    return {key: name for key, name in named.items() if name is not None}


def rows_of(shard: Shard, columns: list[str]) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Return a shard's rows as `cells_of` does; ValueError where a page cannot be read."""
    for part in iterate_shard(shard, columns):
        if isinstance(part, Unreadable):
            raise ValueError(part.reason)
        yield from cells_of(part)


def spread(shards: Sequence[Shard], places: int, each: int) -> Iterator[Shard]:
    """Return parts of at most `each` rows at evenly spread places.

    Returns every row where there are at most places * each.
    """
    rows = sum(shard.rows for shard in shards)
    if rows <= places * each:
        yield from shards
        return
    for place in range(places):
        at = place * (rows - each) // (places - 1)
        shard = next(s for s in shards if s.offset <= at < s.offset + s.rows)
        skip = at - shard.offset
        yield replace(shard, start=shard.start + skip, rows=min(each, shard.rows - skip), offset=at)


def _types(there: dict[str, str], schema: pa.Schema, first: Shard) -> Iterator[Finding]:
    for key, name in there.items():
        kind = type_of(schema, name)
        if key in ("data.image", "data.mask"):
            if meaning(kind) == "text":
                if bad := no_paths(first, name):
                    yield problem(key, bad)
            elif not holds_images(kind):
                yield problem(
                    key,
                    f"expected {name!r} as struct<bytes, path>, binary or paths of image files, got"
                    f" {kind}",
                )
        elif key == "data.label" and pa.types.is_floating(kind):
            yield warning(
                key,
                f"{name!r} is {kind}: rows without a label are set aside, whole numbers are read as"
                " classes",
            )
        elif key == "data.label" and not _label_type(kind):
            yield problem(key, f"expected {name!r} as bool, class index or class name, got {kind}")


def _label_type(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_floating(value) or pa.types.is_struct(value):
        return False
    return meaning(value) in ("number", "text", "bytes", "null")


def _decoded(
    cells: list[dict[str, Any]], data: ImageData, rows: int, found: list[Finding]
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Decode sampled rows and their masks as a worker does; append the findings to `found`."""
    images, records, bad, sizes, lying = [], [], Counter[str](), Counter[tuple[int, int]](), 0
    for cell in cells:
        encoded = bytes_of(cell.get(data.image))
        try:
            if LOST in cell:
                raise BadRow(cell[LOST])
            expect_bytes(cell[data.image], "image")
            image = decode(encoded, size=data.size, crop=data.crop, max_pixels=data.max_pixels)
            mask = mask_of(cell, encoded or b"", data)
        except BadRow as reason:
            bad[str(reason)] += 1
            continue
        images.append(image)
        records.append({name: value for name, value in cell.items() if name != data.image})
        if data.mask:
            records[-1][data.mask] = mask
        with Image.open(io.BytesIO(encoded or b"")) as header:
            sizes[header.size] += 1
            lying += header.getexif().get(ORIENTATION, 1) != 1
    width, height = sides(data.size)
    form = any(reason.startswith(FORM) for reason in bad)
    hint = "`prepare images --convert` makes RGB of other formats and modes" if form else ""
    if not images:
        text = f"none of {len(cells)} sampled rows can be used: {format_commonest(bad)}"
        found.append(problem("images", text, hint))
        return np.zeros((0, height, width, 3), dtype=np.uint8), records
    good = f"{len(images)} of {len(cells)} sampled rows decode, {_sizes(sizes)} to {width}x{height}"
    found.append(ok("images", good + (f" by the crop {list(data.crop)}" if data.crop else "")))
    if bad:
        share = bad.total() / len(cells)
        text = (
            f"{bad.total()} of {len(cells)} sampled rows would be quarantined, {share * rows:,.0f}"
            " or so in all: "
        )
        level = problem if share > 0.5 else warning
        found.append(level("images", text + format_commonest(bad), hint))
    if lying:
        found.append(
            warning(
                "images",
                f"{lying} have an EXIF orientation, which is not applied",
                "prepare images --convert",
            )
        )
    flat = sum(int(image.min() == image.max()) for image in images)
    if flat:
        found.append(warning("images", f"{flat} of {len(images)} are of one colour all over"))
    found += _fit(sizes, data)
    return np.stack(images), records


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    width, height = sizes.most_common(1)[0][0]
    return (
        f"{width}x{height}"
        if len(sizes) == 1
        else f"{len(sizes)} sizes, most of them {width}x{height},"
    )


def _fit(sizes: Counter[tuple[int, int]], data: ImageData) -> Iterator[Finding]:
    """Check the shape and the size of the cut image against the working size."""
    (width, height), _ = sizes.most_common(1)[0]
    wide, high = sides(data.size)
    if data.crop:
        width, height = data.crop[2] - data.crop[0], data.crop[3] - data.crop[1]
    if not 0.9 < (width / height) / (wide / high) < 1.1:
        shape = f"a square of {wide}" if wide == high else f"{wide}x{high}"
        yield warning(
            "data.crop",
            f"{width}x{height} is stretched to {shape}",
            "set data.crop to the same shape",
        )
    if max(width, height) * 2 < max(wide, high):
        shown = wide if wide == high else f"{wide}x{high}"
        yield warning(
            "data.size",
            f"{width}x{height} is enlarged to {shown}: blurred",
            f"try data.size={max(width, height)}",
        )


def _facts(facts: dict[str, list[Any]], config: RunConfig) -> Iterator[Finding]:
    """Check splits and ids of the sampled rows."""
    data = config.data
    if data.id:
        twice = [
            id for id, count in Counter(facts[data.id]).items() if count > 1 and id is not None
        ]
        if twice:
            text = (
                f"{len(twice)} ids of {len(facts[data.id]):,} rows looked at stand twice, such as"
                f" {twice[0]!r}"
            )
            yield problem("data.id", text, "name a column of distinct ids, or none")
        else:
            yield ok("data.id", f"{len(facts[data.id]):,} ids looked at, all distinct")
    splits = (
        Counter(str(value) for value in facts[data.split])
        if data.split in facts
        else Counter({str(data.split): 1})
    )
    if data.split in facts:
        yield ok(
            "data.split", f"of {splits.total():,} rows looked at: {format_commonest(splits, 5)}"
        )
        if "None" in splits:
            yield warning(
                "data.split", f"{splits['None']} rows have none and are in no augmentation set"
            )
    if splits and not set(config.augment.splits) & set(splits):
        wanted, got = (
            ", ".join(config.augment.splits),
            ", ".join(splits) if data.split else "no split",
        )
        text = f"expected rows of {wanted} for the augmentation set, got {got}: it will be empty"
        yield warning(
            "augment.splits", text, "set data.split to a column, or to train where all rows are"
        )


def check_names(schema: pa.Schema, column: str, classes: Sequence[str], key: str) -> list[Finding]:
    """Check whether the data's own names for a column's classes match the classifier's."""
    if bad := contradiction(schema, column, classes):
        return [problem(key, bad, "give a column of names, or the classes in the outputs' order")]
    if text := unlike(schema, column, classes):
        return [warning(key, text, "do they mean the same, in this order?")]
    return []


def check_labels(values: Sequence[Any], classes: Sequence[str], what: str) -> Iterator[Finding]:
    """Check whether label (or target) values name classes, and whether the classes are balanced."""
    counts, bad = Counter[int](), Counter[str]()
    for value in values:
        try:
            counts[class_index(value, classes, what)] += 1
        except BadTarget as reason:
            bad[str(reason)] += 1
    about = f"data.{what}" if what == "label" else "target.column"
    if bad:
        text = (
            f"{bad.total():,} of {len(values):,} rows looked at would be quarantined:"
            f" {one_line(format_commonest(bad))}"
        )
        yield (problem if not counts or bad.total() > len(values) / 2 else warning)(about, text)
    if not counts:
        return
    shares = {name: counts[index] / counts.total() for index, name in enumerate(classes)}
    shown = ", ".join(
        f"{name} {share:.1%}" for name, share in sorted(shares.items(), key=lambda s: -s[1])[:6]
    )
    yield ok(
        about,
        f"of {counts.total():,} rows looked at: {shown}" + (", ..." if len(shares) > 6 else ""),
    )
    empty = [name for name, share in shares.items() if share == 0]
    if empty and counts.total() >= 10 * len(classes):
        text = f"no row of {', '.join(empty[:5])} among {counts.total():,} looked at"
        yield warning(about, text, "are these the classifier's classes, and in its order?")
    elif max(shares.values()) > 0.95:
        yield warning(
            about,
            f"{max(shares.values()):.1%} of the rows are of one class: figures say little on the"
            " others",
        )
