"""Two small convolutional classifiers of different families for images of 32 to 128 px.

With sigmoid outputs they are also used for attributes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """Plain strided convolutions with batch norm and ReLU, then an average over the remaining
    places.

    outputs: scores per image; width: channels of the first stage, doubled at each of `stages`
    halvings (at most 8 x width).
    """

    def __init__(
        self, *, outputs: int, width: int = 24, stages: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage in range(stages):
            after = width * min(2**stage, 8)
            kernel = 4 if stage == 0 else 3
            layers += [
                nn.Conv2d(before, after, kernel, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            if stage:
                layers += [
                    nn.Conv2d(after, after, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ]
            before = after
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, outputs)

    def features(self, images: Tensor) -> Tensor:
        """Return penultimate features (B,F)."""
        pooled: Tensor = self.body(images).mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B,outputs) of normalised images (B,3,H,W)."""
        scores: Tensor = self.head(self.dropout(self.features(images)))
        return scores


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and SiLU, and a shortcut (pre-activation, He et al.
    2016).
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(before, after, 1, bias=False) if before != after else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,after,H/stride,W/stride)."""
        short = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        if self.short is not None:
            short = self.short(short)
        change: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return short + change


class ResNet(nn.Module):
    """A small pre-activation residual network: a strided stem, then one block per width.

    Each block but the first halves the image.
    """

    def __init__(
        self, *, outputs: int, widths: tuple[int, ...] = (24, 48, 96, 128), dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2, bias=False)
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.Sequential(
            *(ResidualBlock(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairs))
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], outputs)

    def features(self, images: Tensor) -> Tensor:
        """Return penultimate features (B,F)."""
        pooled: Tensor = F.silu(self.norm(self.blocks(self.stem(images)))).mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B,outputs) of normalised images (B,3,H,W)."""
        scores: Tensor = self.head(self.dropout(self.features(images)))
        return scores
