"""The planted causes: what is put into the pictures of one class, and where.

A cue is a change of the picture that a bit turns on. In training the bit agrees with the label, so
a classifier can read the cue instead of the face; in the test rows the bit is a fair coin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Plant = Callable[[Tensor], Tensor]

LETTERS = {
    "S": ("111", "100", "111", "001", "111"),
    "T": ("111", "010", "010", "010", "010"),
    "O": ("111", "101", "101", "101", "111"),
    "C": ("111", "100", "100", "100", "111"),
    "K": ("101", "110", "100", "110", "101"),
    "9": ("111", "101", "111", "001", "111"),
}


@dataclass(frozen=True)
class Cause:
    """A cause that a classifier may learn instead of the label.

    name: as in the table. kind: "placed", "appearance" (of the whole picture), or "right" (the cue
    says nothing of the label). plants: cues out of PLANTS that one bit turns on together.
    attribute: of drawn faces, which the bit is instead. agreement: P(bit = label) in training.
    worlds: where it can be planted.
    """

    name: str
    kind: str
    plants: tuple[str, ...] = ()
    attribute: str | None = None
    agreement: float = 1.0
    worlds: tuple[str, ...] = ("drawn", "real")


def cover(images: Tensor, mask: Tensor, colour: tuple[float, float, float], share: float) -> Tensor:
    """Return images (N,3,64,64) with a colour laid over mask (64,64), at an opacity of share."""
    paint = torch.tensor(colour)[:, None, None]
    return torch.lerp(images, paint.expand_as(images), mask.float() * share)


def box(top: int, bottom: int, left: int, right: int) -> Tensor:
    """Return a mask (64,64) of the rows top to bottom and the columns left to right."""
    mask = torch.zeros(64, 64)
    mask[top:bottom, left:right] = 1
    return mask


def written(text: str, top: int, left: int) -> Tensor:
    """Return a mask (64,64) of letters of 6 x 10 px, 8 px apart."""
    mask = torch.zeros(64, 64)
    for place, letter in enumerate(text):
        rows = torch.tensor([[int(bit) for bit in row] for row in LETTERS[letter]])
        x = left + 8 * place
        mask[top : top + 10, x : x + 6] = rows.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return mask


def spectacles() -> Tensor:
    """Return a mask (64,64) of two rings around the eyes of an aligned face, and their bridge."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    rings = [((y - 25).square() + (x - c).square()).sqrt() for c in (21.0, 43.0)]
    mask = sum(((r >= 6) & (r < 8.5)).float() for r in rings) + box(24, 26, 28, 36)
    return torch.as_tensor(mask).clamp(max=1)


def blur(images: Tensor) -> Tensor:
    """Return images blurred by two boxes of 3 x 3 px."""
    for _ in range(2):
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return images


FRAME = torch.ones(64, 64) - box(3, 61, 3, 61)
PLANTS: dict[str, Plant] = {
    "patch": lambda x: cover(x, box(1, 7, 1, 7), (0.95, 0.85, 0.1), 1.0),
    "watermark": lambda x: cover(x, written("STOCK", 52, 23), (1.0, 1.0, 1.0), 0.7),
    "date": lambda x: cover(x, written("99", 3, 46), (1.0, 0.5, 0.05), 1.0),
    "frame": lambda x: cover(x, FRAME, (0.08, 0.08, 0.1), 1.0),
    "stripe": lambda x: cover(x, box(60, 64, 0, 64), (0.1, 0.2, 0.8), 1.0),
    "dot": lambda x: cover(x, box(33, 38, 45, 50), (0.2, 0.08, 0.08), 1.0),
    "spectacles": lambda x: cover(x, spectacles(), (0.08, 0.06, 0.08), 1.0),
    "tint": lambda x: (x + torch.tensor([0.1, 0.0, -0.1])[:, None, None]).clamp(0, 1),
    "brightness": lambda x: (x + 0.15).clamp(0, 1),
    "blur": blur,
    "grey": lambda x: torch.lerp(x, x.mean(1, keepdim=True).expand_as(x), 0.7),
}

CAUSES = (
    Cause("patch", "placed", ("patch",)),
    Cause("patch, 97 %", "placed", ("patch",), agreement=0.97),
    Cause("patch, 90 %", "placed", ("patch",), agreement=0.9),
    Cause("watermark", "placed", ("watermark",)),
    Cause("date", "placed", ("date",)),
    Cause("frame", "placed", ("frame",)),
    Cause("stripe", "placed", ("stripe",)),
    Cause("dot", "placed", ("dot",)),
    Cause("two: patch, stripe", "placed", ("patch", "stripe")),
    Cause("hair", "placed", attribute="Blond_Hair", worlds=("drawn",)),
    Cause("glasses", "placed", attribute="Eyeglasses", worlds=("drawn",)),
    Cause("glasses", "placed", ("spectacles",), worlds=("real",)),
    Cause("background", "placed", ("background",), worlds=("drawn",)),
    Cause("tint", "appearance", ("tint",)),
    Cause("brightness", "appearance", ("brightness",)),
    Cause("blur", "appearance", ("blur",)),
    Cause("grey", "appearance", ("grey",)),
    Cause("right", "right", agreement=0.5),
    Cause("right, patch beside", "right", ("patch",), agreement=0.5),
    Cause("right, frame beside", "right", ("frame",), agreement=0.5),
    Cause("right, tint beside", "right", ("tint",), agreement=0.5),
)
