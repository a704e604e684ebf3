"""A small diffusers UNet over images folded into channels, and noise schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FoldedUNet(nn.Module):
    """A UNet2DModel on fold x fold pixel-unshuffled images.

    Folding is a permutation, so noise in pixels is noise in the folded image, and every layer runs
    at 1/fold of the side. Input and output are (B,3,H,W) in the scale where images are [-1,1].
    """

    def __init__(
        self,
        *,
        size: int = 64,
        fold: int = 2,
        widths: tuple[int, ...] = (48, 96, 128),
        layers: int = 1,
        attention: bool = True,
        **unet: Any,
    ) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.fold = fold
        plain = len(widths) - 1  # levels without attention: all but the smallest
        self.unet = UNet2DModel(
            sample_size=size // fold,
            in_channels=3 * fold**2,
            out_channels=3 * fold**2,
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * plain
            + ("AttnDownBlock2D" if attention else "DownBlock2D",),
            up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D",)
            + ("UpBlock2D",) * plain,
            norm_num_groups=8,
            attention_head_dim=min(32, widths[-1]),
            add_attention=attention,
            **unet,
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the network's raw prediction, shaped like x_t."""
        folded = F.pixel_unshuffle(x_t, self.fold)
        return F.pixel_shuffle(self.unet(folded, t).sample.float(), self.fold)


def alphas_cumprod(schedule: str, steps: int, *, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Return the signal's share of variance at each of `steps` trained steps, (T,) float64.

    linear: betas from `first` to `last` (Ho et al. 2020); scaled_linear: linear in their roots
    (latent diffusion); squaredcos_cap_v2: Nichol & Dhariwal 2021. The names are those of diffusers.
    ValueError on any other schedule.
    """
    if schedule == "linear":
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    elif schedule == "squaredcos_cap_v2":
        edges = torch.arange(steps + 1, dtype=torch.float64) / steps
        bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise ValueError(
            f"expected a schedule out of linear, scaled_linear, squaredcos_cap_v2, got {schedule!r}"
        )
    return torch.cumprod(1 - betas, 0)
