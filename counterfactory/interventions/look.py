"""The look of a picture: its colour and contrast, apart from what is where in it.

A tint, a brightness or a blur changes the look. Its effect can be concentrated all the same, since
a blur changes nothing where a picture is flat. So the look's share of the effect says whether an
effect has a place.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from counterfactory.methods.contract import to_8bit

LEVELS = 4  # halvings; the contrast of each and of the rest is exchanged


def with_look(images: Tensor, others: Tensor) -> Tensor:
    """Return images (N,3,H,W) with each channel's mean and contrasts of others, on the 8-bit grid.

    images, others: in [0,1], of one shape. A contrast is the root mean square of what a halving of
    the image loses.
    """
    mine, (theirs, mean) = _scales(images)[0], _scales(others)
    for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        energy, wanted = (band.square().mean((2, 3), keepdim=True) + 1e-6 for band in (a, b))
        mine[place] = a * (wanted / energy).sqrt()
    found = mine[-1] + mean
    for band in mine[-2::-1]:
        found = _larger(found, band) + band
    return to_8bit(found)


def _scales(images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what each halving of the images loses, finest first, then the rest; and the means."""
    found = []
    for _ in range(LEVELS):
        if min(images.shape[2:]) < 4:
            break
        half = F.avg_pool2d(images, 2, ceil_mode=True)
        found.append(images - _larger(half, images))
        images = half
    mean = images.mean((2, 3), keepdim=True)
    return [*found, images - mean], mean


def _larger(images: Tensor, like: Tensor) -> Tensor:
    """Return images at the size of others."""
    return F.interpolate(images, tuple(like.shape[2:]), mode="bilinear")
