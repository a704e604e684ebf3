"""AttGAN (He et al. 2019): an autoencoder whose decoder takes attributes, with the reader and the
critic of its training.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 1024)


def down(before: int, after: int, norm: bool = True) -> nn.Sequential:
    """Return a stage that halves the side: (B,before,H,W) to (B,after,H/2,W/2)."""
    conv = nn.Conv2d(before, after, 4, 2, 1, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(after)] if norm else []), nn.LeakyReLU(0.2))


def up(before: int, after: int) -> nn.Sequential:
    """Return a stage that doubles the side: (B,before,H,W) to (B,after,2H,2W)."""
    return nn.Sequential(
        nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.LeakyReLU(0.2),
    )


def network(size: int, widths: tuple[int, ...], outputs: int, *, norm: bool) -> nn.Sequential:
    """Return a network from images (B,3,size,size) in [-1,1] to (B,outputs)."""
    stages = [down(before, after, norm) for before, after in pairwise((3, *widths))]
    return nn.Sequential(
        *stages, nn.Flatten(), nn.Linear(widths[-1] * (size >> len(widths)) ** 2, outputs)
    )


class AttGAN(nn.Module):
    """An autoencoder from images (B,3,size,size) in [0,1] to latents (B,widths[-1],s,s), s = size /
    2^len(widths), and back under attributes (Yang et al., "Generative Counterfactuals for Neural
    Networks via Attribute-Informed Perturbation", table 3).

    attributes: their number; the decoder gets (2a - 1) / 2 at every place of the latent. shortcut:
    the number of encoder stages, from the last but one up, whose output also goes to the decoder
    (He et al., 3.4). Shortcuts improve reconstruction; a method that changes the latent does not
    change them. inject: the number of further decoder stages that get the attributes again, as in
    the authors' code. judge: widths of critic and reader; default the encoder's.

    The model stores the reader, since it also predicts the attributes of a query. The critic is
    used in training only. He et al. share one trunk between both. But the gradient penalty is
    computed per image, which rules out batch norm in the critic (Gulrajani et al. 2017, section 4),
    and without batch norm the attributes are learnt many times slower.
    """

    def __init__(
        self,
        *,
        attributes: int,
        size: int = 64,
        widths: tuple[int, ...] = WIDTHS,
        shortcut: int = 1,
        inject: int = 0,
        judge: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        side = size >> len(widths)
        if len(widths) < 2 or side < 1 or side << len(widths) != size:
            raise ValueError(
                f"expected size divisible by {2 ** len(widths)} and 2 widths or more, got {size},"
                f" {widths}"
            )
        if not max(int(shortcut), inject) < len(widths):
            raise ValueError(
                f"expected shortcut and inject below {len(widths)}, got {shortcut} and {inject}"
            )
        self.size, self.shortcut, self.inject, self.judge = (
            size,
            int(shortcut),
            inject,
            tuple(judge or widths),
        )
        # For each shortcut: its number of channels and its side.
        self.skipped = [(widths[-2 - place], side << (place + 1)) for place in range(self.shortcut)]
        self.encoder = nn.ModuleList(
            down(before, after) for before, after in pairwise((3, *widths))
        )
        inputs = [widths[-1] + attributes, *reversed(widths[1:])]
        for place, (channels, _) in enumerate(self.skipped, 1):
            inputs[place] += channels
        for place in range(1, inject + 1):
            inputs[place] += attributes
        outputs = [*reversed(widths[1:]), 3]
        stages: list[nn.Module] = [
            up(before, after) for before, after in zip(inputs[:-1], outputs[:-1], strict=True)
        ]
        self.decoder = nn.ModuleList(
            [*stages, nn.ConvTranspose2d(inputs[-1], outputs[-1], 4, 2, 1)]
        )
        self.reader = network(size, self.judge, attributes, norm=True)

    def encoded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (B,C,s,s) and the shortcuts, flattened and concatenated (B,N); N is 0
        without shortcuts.
        """
        x, stages = images * 2 - 1, []
        for stage in self.encoder:
            x = stage(x)
            stages.append(x)
        skipped = [stages[-2 - place].flatten(1) for place in range(self.shortcut)]
        return x, torch.cat([x.new_zeros(len(x), 0), *skipped], 1)

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B,C,s,s)."""
        return self.encoded(images)[0]

    def skip(self, images: Tensor) -> Tensor:
        """Return the decoder's second input from the images: the shortcuts (B,N)."""
        return self.encoded(images)[1]

    def read(self, images: Tensor) -> Tensor:
        """Return logits (B,A) of the attributes of images."""
        logits: Tensor = self.reader(images * 2 - 1)
        return logits.float()

    def attributes_of(self, images: Tensor) -> Tensor:
        """Return probabilities (B,A) of the attributes of images."""
        return self.read(images).sigmoid()

    def decode(self, latents: Tensor, attributes: Tensor, skip: Tensor) -> Tensor:
        """Return images (B,3,size,size) in [0,1].

        attributes: (B,A), 0 without and 1 with the attribute. Values between and outside are
        allowed.
        """
        told = ((2 * attributes - 1) / 2).to(latents)[:, :, None, None]
        skips: list[Tensor] = []
        for channels, side in self.skipped:
            skips.append(skip[:, : channels * side**2].reshape(len(skip), channels, side, side))
            skip = skip[:, channels * side**2 :]
        x = latents
        for place, stage in enumerate(self.decoder):
            parts = [x]
            if 1 <= place <= len(skips):
                parts.append(skips[place - 1].to(x))
            if place <= self.inject:
                parts.append(told.expand(-1, -1, *x.shape[2:]).to(x))
            x = stage(torch.cat(parts, 1))
        return (torch.tanh(x.float()) + 1) / 2

    def critic(self) -> nn.Sequential:
        """Return a new critic for training: images (B,3,size,size) in [-1,1] to realness (B,1)
        without a scale.
        """
        return network(self.size, self.judge, 1, norm=False)
