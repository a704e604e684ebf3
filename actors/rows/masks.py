"""A row's segmentation mask: read with its image, checked against the regions that
a model knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.rows.files import expect_bytes
from configs.schema import ImageData
from storage.codec import BadRow, decode_mask, dimensions

Mask = NDArray[np.uint8]


def mask_of(cells: Mapping[str, Any], content: bytes, data: ImageData) -> Mask | None:
    """Return the mask (H,W) at working size of a row whose image is `content`.

    Returns None where the data have no masks. BadRow where it cannot be read, or its size is not
    the image's.
    """
    if not data.mask:
        return None
    expect_bytes(cells.get(data.mask), "mask")
    of = dimensions(content, max_pixels=data.max_pixels)
    return decode_mask(cells.get(data.mask), size=data.size, crop=data.crop, of=of)


def regions_of(models: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the regions that a run's models know, in the order of the masks' values.

    Returns None where no model needs masks.
    """
    return next((model.regions for model in models.values() if hasattr(model, "regions")), None)


def expect_regions(mask: Mask | None, regions: Sequence[str] | None) -> None:
    """Raise BadRow where a mask has a value that is not a region's."""
    if mask is not None and regions is not None and int(mask.max()) >= len(regions):
        raise BadRow(
            f"mask: expected values below {len(regions)}, one per region, got {int(mask.max())}"
        )


def stacked(masks: Sequence[Mask | None], device: torch.device) -> Tensor | None:
    """Return masks in the form of a method, (B,H,W) int64; None where rows have none."""
    there = [mask for mask in masks if mask is not None]
    return torch.from_numpy(np.stack(there)).to(device, torch.int64) if there else None
