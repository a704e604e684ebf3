"""A training set in memory: images decoded once, labels and attributes as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.schema import ImageData
from configs.strict import UserError, nearest
from storage.codec import BadRow, decode, decode_mask, dimensions
from storage.tables import damage_named
from storage.uri import data_files


@dataclass(frozen=True)
class Samples:
    """images: (N,3,S,S) uint8; columns: per name, the N values as Parquet gives them (bool, int,
    str), none of them null; masks: (N,S,S) uint8, where the data name a column of them."""

    images: Tensor
    columns: dict[str, list[Any]]
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


def load(data: ImageData, columns: list[str], log: Callable[[str], None] = print) -> Samples:
    """Read and decode the rows that `data` selects, with `columns`; rows that cannot be used are
    left out and counted.

    UserError: no file, no such column, no usable row.
    """
    start, stop = (int(part) if part else None for part in (data.rows or ":").split(":"))
    first, last = start or 0, stop if stop is not None else np.inf
    try:
        files = data_files(data.path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data.path: {error}") from None
    images: list[Any] = []
    masks: list[Any] = []
    read = [data.image, *([data.mask] if data.mask else []), *columns]
    kept: dict[str, list[Any]] = {name: [] for name in columns}
    bad: Counter[str] = Counter()
    position = 0
    for store, path in files:
        parquet = store.parquet(path)
        known = parquet.schema_arrow.names
        for name in read:
            if name not in known:
                raise UserError(
                    f"{store.url(path)}: expected a column {name!r}: {nearest(name, known)}"
                )
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            position += rows
            if position <= first or position - rows >= last:
                continue
            with damage_named(store.url(path)):
                table = parquet.read_row_group(group, columns=read).to_pylist()
            for offset, row in enumerate(table, position - rows):
                if not first <= offset < last:
                    continue
                cell = row[data.image]
                null = next(
                    (name for name in columns if row[name] is None or row[name] != row[name]), None
                )
                try:
                    if null is not None:
                        raise BadRow(f"{null} is null")
                    content = cell["bytes"] if isinstance(cell, dict) else cell
                    image = decode(
                        content, size=data.size, crop=data.crop, max_pixels=data.max_pixels
                    )
                    if data.mask:
                        of = dimensions(content, max_pixels=data.max_pixels)
                        masks.append(
                            decode_mask(row[data.mask], size=data.size, crop=data.crop, of=of)
                        )
                    images.append(image)
                except BadRow as error:
                    bad[str(error)] += 1
                    continue
                for name in columns:
                    kept[name].append(row[name])
    for reason, count in bad.most_common(5):
        log(f"left out {count} rows: {reason}")
    if not images:
        raise UserError(f"{data.path}: expected usable rows, got none (rows: {data.rows or 'all'})")
    array = np.stack(images)
    tensor = (
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    )
    return Samples(tensor, kept, torch.from_numpy(np.stack(masks)) if masks else None)


def class_indices(values: list[Any], classes: list[str], column: str) -> Tensor:
    """Class indices (N,) int64 of a label column: booleans and integers as they are, names by their
    place in `classes`."""
    index = {name: place for place, name in enumerate(classes)}
    out = []
    for value in values:
        place = index.get(value) if isinstance(value, str) else int(value)
        if place is None or not 0 <= place < len(classes):
            raise UserError(
                f"{column}: expected a class out of {', '.join(classes)} or its index, got"
                f" {value!r}"
            )
        out.append(place)
    return torch.tensor(out)


def bits(samples: Samples, names: list[str]) -> Tensor:
    """Boolean columns as (N,A) float32 of 0 and 1; UserError where a column holds anything else."""
    if not names:
        return torch.zeros(len(samples), 0)
    for name in names:
        odd = next((value for value in samples.columns[name] if value not in (0, 1)), None)
        if odd is not None:
            raise UserError(f"{name}: expected a boolean column, got the value {odd!r}")
    return torch.tensor(
        [samples.columns[name] for name in names], dtype=torch.float32
    ).T.contiguous()
