"""A training set in memory: images, decoded once, and labels and attributes as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.rows.files import bytes_of, expect_bytes, with_files
from actors.rows.masks import mask_of
from actors.rows.read import TRAIN, cells_of, split_column
from actors.rows.targets import BadTarget, class_index
from configs.schema import ImageData, TrainConfig
from configs.strict import UserError
from storage.codec import BadRow, decode
from storage.plan import iterate_shard, plan_shards


@dataclass(frozen=True)
class Samples:
    """Decoded rows for training.

    images: (N,3,S,S) uint8; columns: by name, the N values as in Parquet (bool, int, str), none of
    them null; masks: (N,S,S) uint8, where the data have a column of them.
    """

    images: Tensor
    columns: dict[str, list[Any]]
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


def load(
    data: ImageData,
    columns: list[str],
    log: Callable[[str], None] = print,
    *,
    held: bool = False,
) -> Samples:
    """Read and decode the rows that `data` selects, with `columns`; skip and count unusable rows.

    Where `data.split` is a column, reads the rows with the value `train`; with `held`, all others
    that have a value. UserError: no file, no such column, no usable row.
    """
    images: list[Any] = []
    masks: list[Any] = []
    kept: dict[str, list[Any]] = {name: [] for name in columns}
    bad: Counter[str] = Counter()
    split = split_column(data)
    found: Counter[str] = Counter()  # rows by split
    for cells, lost in rows_of(data, [*columns_of_images(data), *columns]):
        try:
            if lost is not None:
                raise BadRow(lost)
            if split and cells[split] is None:
                raise BadRow(f"{split} is null")
            if split:
                found[str(cells[split])] += 1
                if (str(cells[split]) == TRAIN) == held:
                    continue
            null = next((n for n in columns if cells[n] is None or cells[n] != cells[n]), None)
            if null is not None:
                raise BadRow(f"{null} is null")
            expect_bytes(cells[data.image], "image")
            content = bytes_of(cells[data.image])
            image = decode(content, size=data.size, crop=data.crop, max_pixels=data.max_pixels)
            mask = mask_of(cells, content, data)
        except BadRow as error:
            bad[str(error)] += 1
            continue
        images.append(image)
        if mask is not None:
            masks.append(mask)
        for name in columns:
            kept[name].append(cells[name])
    for reason, count in bad.most_common(5):
        log(f"left out {count} rows: {reason}")
    if found:
        log(f"{data.path}: the rows{_side(split, held)}, of {_said(found)}")
    if not images:
        raise UserError(
            f"{data.path}: expected usable rows{_side(split, held)}, got none (rows:"
            f" {data.rows or 'all'}{'; ' if found else ''}{_said(found)})"
        )
    array = np.stack(images)
    tensor = (
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    )
    return Samples(tensor, kept, torch.from_numpy(np.stack(masks)) if masks else None)


def with_holdout(config: TrainConfig) -> TrainConfig:
    """Return the config with the other rows of its split as the holdout, where it has a split but
    no holdout.

    UserError before the training where the rows to train on are test rows, or where all holdout
    rows are train rows.
    """
    data, held = config.data, config.holdout
    if data.split == "test":
        raise UserError(f"{config.name}: data.split: expected a column, train or null, got test")
    if held is None:
        others = split_column(data) and _splits(data).keys() - {TRAIN}
        rest = data.model_copy(update={"columns": []})
        return config.model_copy(update={"holdout": rest}) if others else config
    if held.split == TRAIN:
        raise UserError(f"{config.name}: holdout.split: expected a column, test or null, got train")
    if split_column(held) and not _splits(held).keys() - {TRAIN}:
        raise UserError(
            f"{config.name}: holdout: expected rows{_side(held.split, True)} in {held.path}, got"
            " none: take other rows, or set holdout.split=null"
        )
    return config


def _splits(data: ImageData) -> Counter[str]:
    """Return the number of selected rows in each split; rows without a split do not count."""
    split = str(data.split)
    values = (cells.get(split) for cells, _ in rows_of(data, []))
    return Counter(str(value) for value in values if value is not None)


def rows_of(data: ImageData, columns: list[str]) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield the selected rows' cells, and the reason where a row cannot be read; UserError: no
    file, no such column.
    """
    wanted = [name for name in dict.fromkeys([*columns, split_column(data)]) if name]
    try:
        shards, _ = plan_shards(data.path, shard_rows=2**62, rows=data.rows, columns=wanted)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data.path: {error}") from None
    for shard in shards:
        for part in iterate_shard(shard, wanted):
            for cells, lost in cells_of(part):
                yield with_files(cells, columns_of_images(data), shard.file), lost


def columns_of_images(data: ImageData) -> list[str]:
    """Return the columns of images and masks."""
    return [data.image, *([data.mask] if data.mask else [])]


def _side(split: str | None, held: bool) -> str:
    """Return which rows are meant, in words, where a column splits them."""
    return "" if split is None else f" whose {split} is {'not ' if held else ''}{TRAIN}"


def _said(found: Counter[str]) -> str:
    """Return the number of rows by split, as text."""
    return ", ".join(f"{count:,} {name}" for name, count in found.most_common(5))


def class_indices(values: list[Any], classes: list[str], column: str) -> Tensor:
    """Return the class indices (N,) int64 of a label column, read as in a run; UserError where a
    label is no class.
    """
    try:
        return torch.tensor([class_index(value, classes, column) for value in values])
    except BadTarget as reason:
        raise UserError(str(reason)) from None


def bits(samples: Samples, names: list[str]) -> Tensor:
    """Return boolean columns as (N,A) float32 of 0 and 1; UserError where a column has other
    values.
    """
    if not names:
        return torch.zeros(len(samples), 0)
    for name in names:
        odd = next((value for value in samples.columns[name] if value not in (0, 1)), None)
        if odd is not None:
            hint = ": write 0 and 1 for -1 and 1" if odd in (-1, "-1") else ""
            raise UserError(f"{name}: expected a boolean column, got the value {odd!r}{hint}")
    return torch.tensor(
        [samples.columns[name] for name in names], dtype=torch.float32
    ).T.contiguous()
