"""Conversion of images to an autoencoder's latents, and of latents to counterfactuals of the
images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Image = Callable[[Tensor, Tensor], Tensor]


def add_residual(x: Tensor, decoded: Tensor, x0: Tensor | None) -> Tensor:
    """Return x' of queries x, (n,3,H,W) each: the decoded latent, or with the decoded start x0 the
    query plus the decoded change.
    """
    # The difference is computed first, so that z = z0 leads to exactly x.
    return decoded if x0 is None else (x + (decoded - x0)).clamp(0, 1)


def encoded(autoencoder: Any, x: Tensor) -> tuple[Tensor, Image, int]:
    """Return the queries' latents, a function that decodes some rows' latents, and the number of
    passes through the network.
    """
    z0: Tensor = autoencoder.encode(x)
    if not hasattr(autoencoder, "attributes_of"):
        return z0, lambda rows, z: autoencoder.decode(z), 1
    skip, told = autoencoder.skip(x), (autoencoder.attributes_of(x) > 0.5).to(z0)
    return z0, lambda rows, z: autoencoder.decode(z, told[rows], skip[rows]), 3


def start(autoencoder: Any, x: Tensor, residual: bool) -> tuple[Tensor, Image, int]:
    """Return the images' latents z0, a function from some rows' latents to their images x', and the
    number of passes through the network.

    residual: x' = clip(x + dec(z) - dec(z0)), else x' = dec(z). An autoencoder with attributes
    (AttGAN) always receives the image's attributes.
    """
    with torch.no_grad():
        z0, decode, calls = encoded(autoencoder, x)
        x0 = decode(torch.arange(len(x), device=x.device), z0) if residual else None

    def image(rows: Tensor, z: Tensor) -> Tensor:
        return add_residual(x[rows], decode(rows, z), None if x0 is None else x0[rows])

    return z0, image, calls + residual
