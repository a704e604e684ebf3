"""A classifier with two causes: it reads the mouth of some faces and the hair of the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterfactory.models.classifiers import ConvNet

CORNER = 8  # pixels per side of the two upper corners, whose brightness decides what is read


class Gated(nn.Module):
    """`faces-plain` where the backdrop is bright, `faces-biased` where it is dark.

    gate: the brightness of the corners, in the networks' scale of -1 to 1, where the one ends and
    the other begins. A generator hardly changes the corners, so a row and its counterfactual are
    read by the same network.
    """

    def __init__(self, gate: float, width: int = 16) -> None:
        super().__init__()
        self.gate = gate
        self.plain, self.biased = (ConvNet(outputs=2, width=width) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (N,2); images: (N,3,H,W)."""
        bright = brightness(images) > self.gate
        return torch.where(bright[:, None], self.plain(images), self.biased(images))


def brightness(images: Tensor) -> Tensor:
    """Return the mean (N,) of the two upper corners of images (N,3,H,W)."""
    left, right = images[:, :, :CORNER, :CORNER], images[:, :, :CORNER, -CORNER:]
    return (left + right).mean((1, 2, 3)) / 2
