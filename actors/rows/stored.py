"""Images of committed rows, as workers of the stages after generate see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.strict import UserError
from storage.codec import BadRow, decode


def stored_images(
    records: Sequence[Mapping[str, Any]],
    column: str,
    shard: int,
    data: Mapping[str, Any],
    device: torch.device,
) -> Tensor:
    """Stored images (B,3,H,W) in [0,1] on the device; data: the run's data settings.

    UserError names the shard and the row of an image that is none.
    """
    images = []
    for record in records:
        try:
            cell = (record[column] or {}).get("bytes")
            images.append(decode(cell, size=data["size"], crop=None, max_pixels=data["max_pixels"]))
        except BadRow as reason:
            raise UserError(
                f"shard {shard}, row {record['cf_id']}: expected a stored {column} that can be"
                f" read, got {reason}"
            ) from None
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return stacked.to(device, torch.float32).div(255).contiguous()
