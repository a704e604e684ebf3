"""The two worlds that causes are planted in: drawn faces, and real ones (crops of CelebA)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.planted_causes import PLANTS, Cause
from counterfactory.worlds import faces
from counterfactory.worlds.faces_masks import BACKGROUND, MOUTH

CELEBA = Path(__file__).parents[2] / "shared" / "data" / "celeba"
CROP = (14, 29, 75, 90)
REAL_TRAIN = 4800  # rows of CelebA before this train all networks, those after it are the test
DRAWN_SEED = 4100  # of the drawn faces; unlike the seeds of the shipped networks
MOUTH_BOX = (44, 60, 14, 50)  # of the aligned real faces: top, bottom, left, right


@dataclass(frozen=True)
class Rows:
    """Faces without and with a cue, (N,3,64,64) uint8 each; label and bit: (N,) bool.

    mouth: (64,64), how often each pixel is the mouth's.
    """

    without: Tensor
    planted: Tensor
    label: Tensor
    bit: Tensor
    mouth: Tensor

    @property
    def images(self) -> Tensor:
        """The faces as they are, float in [0,1]."""
        return self.shown(self.bit)

    def shown(self, bit: Tensor) -> Tensor:
        """Return the same faces with the cue where `bit` (N,) is set, float in [0,1]."""
        return torch.where(bit[:, None, None, None], self.planted, self.without).float() / 255

    def place(self) -> Tensor:
        """Return how often the cue changes each pixel, (64,64)."""
        moved = (self.planted.int() - self.without.int()).abs().amax(1) > 8
        return moved.float().mean(0)


def rows_of(world: str, cause: Cause, seed: int, count: int, *, test: bool) -> Rows:
    """Return rows of a world; the cue agrees with the label as the cause says, in the test rows in
    half of them.
    """
    agreement = 0.5 if test else cause.agreement
    rng = np.random.default_rng([seed, int(test)])
    if world == "drawn":
        first = 10**6 * (seed + 1) + 10**5 * test
        rows = np.arange(first, first + count)
        named = {cause.attribute: agreement} if cause.attribute else {}
        bits = faces.labels(DRAWN_SEED, rows, correlations=named)
        label = bits[:, faces.ATTRIBUTES.index("Smiling")]
        if cause.attribute:
            column = faces.ATTRIBUTES.index(cause.attribute)
            bit = bits[:, column].copy()
            both = []
            for value in (False, True):
                bits[:, column] = value
                both.append(drawn(rows, bits))
            without, planted = both
        else:
            bit = agreeing(label, agreement, rng)
            without = drawn(rows, bits)
            planted = plant(cause.plants, without, regions(rows, bits) == BACKGROUND)
        mouth = torch.from_numpy(regions(rows[:200], bits[:200]) == MOUTH).float().mean(0)
    else:
        images, labels = real()
        low, high = (REAL_TRAIN, len(images)) if test else (0, REAL_TRAIN)
        rows = low + rng.permutation(high - low)[:count]
        without, label = images[rows], labels[rows]
        bit = agreeing(label, agreement, rng)
        planted = plant(cause.plants, without, None)
        mouth = torch.zeros(64, 64)
        mouth[MOUTH_BOX[0] : MOUTH_BOX[1], MOUTH_BOX[2] : MOUTH_BOX[3]] = 1
    return Rows(without, planted, torch.from_numpy(label), torch.from_numpy(bit), mouth)


def pool(world: str, count: int, *, often: bool = False) -> tuple[Tensor, list[str], Tensor]:
    """Return faces on which every cue comes and goes by itself, for the autoencoder and the oracle:
    images (N,3,64,64) uint8, the names of what is in them, and the bits (N,A).

    An image has one cue in the mean, two where `often` is set.
    """
    rng = np.random.default_rng(77)
    if world == "drawn":
        rows = np.arange(count)
        bits = faces.labels(DRAWN_SEED, rows)
        images, names = drawn(rows, bits), [*faces.ATTRIBUTES]
        area = regions(rows, bits) == BACKGROUND
    else:
        every, label = real()
        rows = np.arange(count) % REAL_TRAIN
        images, bits, names, area = every[rows], label[rows][:, None], ["Smiling"], None
        mirrored = torch.from_numpy(rng.random(count) < 0.5)
        images[mirrored] = images[mirrored].flip(3)
    cues = [name for name in (*PLANTS, "background") if name != "background" or area is not None]
    there = rng.random((count, len(cues))) < (2 if often else 1) / len(cues)
    for column, cue in enumerate(cues):
        chosen = there[:, column]
        part = area[chosen] if area is not None else None
        images[torch.from_numpy(chosen)] = plant((cue,), images[torch.from_numpy(chosen)], part)
    return images, names + cues, torch.from_numpy(np.concatenate([bits, there], 1))


def plant(cues: tuple[str, ...], images: Tensor, area: NDArray[np.bool_] | None) -> Tensor:
    """Return images (N,3,64,64) uint8 with the cues; area: (N,64,64), the background."""
    planted = images.clone()
    for start in range(0, len(images), 512):
        part = images[start : start + 512].float() / 255
        for cue in cues:
            if cue == "background":
                assert area is not None
                inside = torch.from_numpy(area[start : start + 512])[:, None].float()
                paint = torch.tensor([0.2, 0.65, 0.3])[:, None, None].expand_as(part)
                part = torch.lerp(part, paint, inside * 0.6)
            else:
                part = PLANTS[cue](part)
        planted[start : start + 512] = part.mul(255).round().to(torch.uint8)
    return planted


def agreeing(
    label: NDArray[np.bool_], agreement: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return bits (N,) that are the label with a probability."""
    return np.asarray(label == (rng.random(len(label)) < agreement))


def drawn(rows: NDArray[np.int64], bits: NDArray[np.bool_]) -> Tensor:
    """Return drawn faces (N,3,64,64) uint8."""
    images = faces.draw(DRAWN_SEED, rows, attributes=bits)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def regions(rows: NDArray[np.int64], bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the regions of drawn faces, (N,64,64)."""
    return faces.masks(DRAWN_SEED, rows, attributes=bits)


@cache
def real() -> tuple[Tensor, NDArray[np.bool_]]:
    """Return all real faces (N,3,64,64) uint8 and whether they smile, (N,)."""
    images, labels = [], []
    for file in sorted(CELEBA.glob("*.parquet")):
        for row in pq.read_table(file, columns=["image", "Smiling"]).to_pylist():
            picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").crop(CROP)
            images.append(np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)))
            labels.append(row["Smiling"])
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), np.array(labels)
