"""DenseNet-121 (Huang et al. 2017, arXiv 1608.06993) with the weight names of torchvision."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROWTH, STEM, BOTTLENECK = (
    32,
    64,
    4,
)  # channels a layer adds, channels before the first block, width of a 1x1 in GROWTHs
BLOCKS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, each after a norm; their output is concatenated to their
    input.
    """

    def __init__(self, before: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = (
            nn.BatchNorm2d(before),
            nn.Conv2d(before, BOTTLENECK * GROWTH, 1, bias=False),
        )
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * GROWTH)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,before + GROWTH,H,W)."""
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


class DenseNet121(nn.Module):
    """DenseNet-121, with 7,978,856 weights for 1000 classes; normalised images (B,3,H,W) of 32 px
    and more.
    """

    def __init__(self, *, outputs: int = 1000) -> None:
        super().__init__()
        # The weights' names need a submodule `features`, and wrappers use a method of that name. In
        # look-ups the method wins, so the submodule is registered past nn.Module's check.
        self._modules["features"], width = body()
        self.classifier = nn.Linear(width, outputs)

    def features(self, images: Tensor) -> Tensor:
        """Return penultimate features (B,1024)."""
        layers = self._modules["features"]
        assert layers is not None
        maps: Tensor = layers(images)
        return F.relu(maps).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B,outputs)."""
        scores: Tensor = self.classifier(self.features(images))
        return scores


def body() -> tuple[nn.Sequential, int]:
    """Return all layers before the last ReLU and their number of output channels."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv0=nn.Conv2d(3, STEM, 7, 2, 3, bias=False),
        norm0=nn.BatchNorm2d(STEM),
        relu0=nn.ReLU(),
        pool0=nn.MaxPool2d(3, 2, 1),
    )
    width = STEM
    for number, count in enumerate(BLOCKS, 1):
        block = nn.Sequential()
        for i in range(1, count + 1):
            block.add_module(f"denselayer{i}", DenseLayer(width))
            width += GROWTH
        layers[f"denseblock{number}"] = block
        if number < len(BLOCKS):
            layers[f"transition{number}"], width = transition(width), width // 2
    layers["norm5"] = nn.BatchNorm2d(width)
    return nn.Sequential(layers), width


def transition(width: int) -> nn.Sequential:
    """Return a stage that halves the channels and the side."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
            conv=nn.Conv2d(width, width // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )
