"""A data set in the place of a model, for methods that compare its images with a query.

The images are read, pinned and decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from actors.rows.files import bytes_of, with_files
from actors.rows.read import TRAIN, split_column
from configs.schema import ImageData
from configs.strict import UserError, check
from counterfactory.models.distractors import Distractors
from storage.codec import BadRow, decode
from storage.plan import plan_shards, read_shard


def bank_digest(spec: Mapping[str, Any], name: str) -> str:
    """Return the sha256 over the images that a model's spec of source parquet selects."""
    return _digest(_contents(_data(spec, name), name))


def load_bank(spec: Mapping[str, Any], name: str) -> tuple[Distractors, str]:
    """Return the selected images that can be decoded, and the digest of all selected images.

    UserError where none can be decoded.
    """
    data = _data(spec, name)
    stored, images, numbers = _contents(data, name), [], []
    for number, content in enumerate(stored):
        try:
            images.append(
                decode(content, size=data.size, crop=data.crop, max_pixels=data.max_pixels)
            )
            numbers.append(number)
        except BadRow:  # such a row of the run is quarantined; here another image can replace it
            continue
    if not images:
        raise UserError(f"models.{name}: expected images in {data.path}, got none that can be read")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Distractors(pixels, torch.tensor(numbers)), _digest(stored)


def _data(spec: Mapping[str, Any], name: str) -> ImageData:
    """Return the spec as the settings of a data set."""
    return check(
        ImageData, {"path": spec["weights"], **spec["settings"]}, f"models.{name}.settings"
    )


def _contents(data: ImageData, name: str) -> list[bytes | None]:
    """Return the selected images' bytes as they are stored.

    Only train rows are selected where `split` is a column.
    """
    try:
        split = split_column(data)
        columns = [data.image, *([split] if split else [])]
        shards, _ = plan_shards(data.path, shard_rows=1 << 20, rows=data.rows, columns=columns)
        return [
            bytes_of(with_files(cells, [data.image], shard.file)[data.image])
            for shard in shards
            for cells in read_shard(shard, columns).to_pylist()
            if not split or str(cells[split]) == TRAIN
        ]
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"models.{name}: {error}") from None


def _digest(images: list[bytes | None]) -> str:
    whole = hashlib.sha256()
    for content in images:
        whole.update(len(content or b"").to_bytes(8, "big") + (content or b""))
    return whole.hexdigest()
