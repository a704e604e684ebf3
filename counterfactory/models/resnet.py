"""ResNet-50 (He et al. 2016, with the stride in the 3x3 convolution) with the weight names of
common checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with batch norm, and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = (
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,4 width,H/stride,W/stride)."""
        short = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + short)


class ResNet50(nn.Module):
    """ResNet-50, with 25.6 million weights for 1000 classes; normalised images (B,3,H,W), usually
    of 224 px.
    """

    def __init__(self, *, outputs: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, blocks=3, stride=1)
        self.layer2 = stage(256, 128, blocks=4, stride=2)
        self.layer3 = stage(512, 256, blocks=6, stride=2)
        self.layer4 = stage(1024, 512, blocks=3, stride=2)
        self.fc: nn.Module = nn.Linear(2048, outputs)

    def features(self, images: Tensor) -> Tensor:
        """Return penultimate features (B,2048)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        pooled: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B,outputs)."""
        scores: Tensor = self.fc(self.features(images))
        return scores


def stage(before: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    """Return bottlenecks of one width, the first with the stride."""
    rest = (Bottleneck(4 * width, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(before, width, stride), *rest)
