"""The UNet of guided-diffusion (Dhariwal & Nichol 2021, arXiv 2105.05233) with the weight names of
the published checkpoints.

The checkpoints of DiME, ACE and CECAS load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32  # of every group norm
Resample = Callable[[Tensor], Tensor]


class ResBlock(nn.Module):
    """Two convolutions and a shortcut, scaled and shifted by the noise level; `resample` changes
    the side between the layers.
    """

    def __init__(
        self, before: int, after: int, level: int, *, resample: Resample | None = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(norm(before), nn.SiLU(), conv(before, after))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(level, 2 * after))
        # The published networks use no dropout, but their weights' numbers count a dropout layer.
        self.out_layers = nn.Sequential(
            norm(after), nn.SiLU(), nn.Identity(), zeroed(conv(after, after))
        )
        self.skip_connection: nn.Module = (
            nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return (B,after,H',W'); x (B,before,H,W), level (B,E)."""
        h = self.in_layers[:-1](x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.in_layers[-1](h)
        scale, shift = self.emb_layers(level)[:, :, None, None].chunk(2, 1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        changed: Tensor = self.skip_connection(x) + self.out_layers[1:](h)
        return changed


class Attention(nn.Module):
    """Self-attention over places; a head's queries, keys and values are adjacent channels of
    `qkv`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(width)
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor shaped like x, (B,width,H,W)."""
        flat = x.flatten(2)
        # (B,heads,HW,3c)
        heads = self.qkv(self.norm(flat)).unflatten(1, (self.heads, -1)).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(*heads.chunk(3, 3)).transpose(2, 3).flatten(1, 2)
        attended: Tensor = self.proj_out(mixed)
        return (flat + attended).view_as(x)


class GuidedUNet(nn.Module):
    """An unconditional UNet (x_t, t) -> noise. With learned_variance it has 3 further output
    channels (B,6,H,W).

    The settings are guided-diffusion's flags: size (--image_size), channels (--num_channels),
    multiples (--channel_mult, which follows from the size there), blocks (--num_res_blocks),
    attention (--attention_resolutions: sides of the maps that have it, for images of `size`; the
    middle always has it), heads (--num_heads) or head_channels (--num_head_channels). Its flags
    --resblock_updown and --use_scale_shift_norm are true, --class_cond is false and --dropout is 0,
    as in all published weights of the counterfactual papers. Images may have other sides than
    `size`.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int = 128,
        multiples: Sequence[int] = (1, 1, 2, 3, 4),
        blocks: int = 2,
        attention: Sequence[int] = (32, 16, 8),
        heads: int = 4,
        head_channels: int | None = None,
        learned_variance: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.fold = channels, 2 ** (len(multiples) - 1)
        level, widths = 4 * channels, [channels * multiple for multiple in multiples]
        self.time_embed = nn.Sequential(
            nn.Linear(channels, level), nn.SiLU(), nn.Linear(level, level)
        )

        def block(before: int, after: int, depth: int) -> nn.ModuleList:
            """Return a residual block, with attention where maps of this depth have it."""
            attended = (
                [attend(after)] if any(size // side == 2**depth for side in attention) else []
            )
            return nn.ModuleList([ResBlock(before, after, level), *attended])

        def attend(width: int) -> Attention:
            return Attention(width, width // head_channels if head_channels else heads)

        width = widths[0]
        self.input_blocks = nn.ModuleList([nn.ModuleList([conv(3, width)])])
        skips = [width]
        for depth, after in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(block(width, after, depth))
                width = after
                skips.append(width)
            if depth < len(widths) - 1:
                self.input_blocks.append(
                    nn.ModuleList([ResBlock(width, width, level, resample=smaller)])
                )
                skips.append(width)

        middle = [ResBlock(width, width, level), attend(width), ResBlock(width, width, level)]
        self.middle_block = nn.ModuleList(middle)

        self.output_blocks = nn.ModuleList()
        for depth, after in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.output_blocks.append(block(width + skips.pop(), after, depth))
                width = after
            if depth:
                last = self.output_blocks[-1]
                assert isinstance(last, nn.ModuleList)
                last.append(ResBlock(width, width, level, resample=larger))
        self.out = nn.Sequential(
            norm(width), nn.SiLU(), zeroed(conv(width, 6 if learned_variance else 3))
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the raw output (B,6 or 3,H,W).

        x_t: (B,3,H,W) in the scale where images are [-1,1]; t: (B,) trained steps. ValueError where
        the sides are not divisible by `fold`.
        """
        if x_t.shape[2] % self.fold or x_t.shape[3] % self.fold:
            raise ValueError(
                f"expected images of sides divisible by {self.fold}, got {tuple(x_t.shape[2:])}"
            )
        level = self.time_embed(sinusoids(t, self.channels))
        h, skips = x_t, []
        for layers in self.input_blocks:
            h = through(layers, h, level)
            skips.append(h)
        h = through(self.middle_block, h, level)
        for layers in self.output_blocks:
            h = through(layers, torch.cat([h, skips.pop()], 1), level)
        output: Tensor = self.out(h)
        return output


def through(layers: nn.Module, x: Tensor, level: Tensor) -> Tensor:
    """Return x after a list of layers; residual blocks also get the noise level."""
    for layer in layers.children():
        x = layer(x, level) if isinstance(layer, ResBlock) else layer(x)
    return x


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Return cosines, then sines, of t at frequencies from 1 to 1/10,000 (Vaswani et al. 2017);
    (B,width).
    """
    half = width // 2
    rates = torch.exp(
        torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10_000) / half)
    )
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


def smaller(x: Tensor) -> Tensor:
    """Return maps at half the side, by means."""
    return F.avg_pool2d(x, 2)


def larger(x: Tensor) -> Tensor:
    """Return maps at twice the side, by repetition."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width)


def conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def zeroed(layer: nn.Conv1d | nn.Conv2d) -> nn.Module:
    """Return the layer with weights of 0, so that an untrained block changes nothing."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
