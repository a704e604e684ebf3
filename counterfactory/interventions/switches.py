"""Changes cut into parts that can be switched on and off.

A part of a change of images is a cell of a grid, or a kind of change: colour, coarse or fine. Other
kinds of data bring their own `Switches`, such as the replaced words of a text.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from counterfactory.methods.contract import row_generators, to_8bit

GRID = 8
KINDS = ("colour", "coarse", "fine")


class Switches(Protocol):
    """A batch of changes x' - x, each in `count` parts."""

    @property
    def count(self) -> int:
        """Number of parts."""
        ...

    def mixed(self, rows: Tensor, on: Tensor) -> Any:
        """Return mixtures as a classifier accepts them.

        rows: (N,) int64, the changes. on: (N,count) bool, the parts that are carried over.
        """
        ...

    def amounts(self) -> Tensor:
        """Return the size of each part, (B,count), 0 or more."""
        ...


class Cells:
    """The cells of a grid over images as parts of a change.

    original, counterfactual: (B,3,H,W) in [0,1]. grid: cells per side; a side of fewer than 2 px a
    cell gets fewer cells. A cell's edge is soft, a quarter of a cell wide to either side: 2 px at
    64 px. A hard edge would be a line that no image of the data has.
    """

    def __init__(self, original: Tensor, counterfactual: Tensor, grid: int = GRID) -> None:
        height, width = original.shape[2:]
        self.original, self.change = original, counterfactual - original
        self.rows, self.columns = (max(1, min(grid, side // 2)) for side in (height, width))
        self.count = self.rows * self.columns
        device = original.device
        self._down, self._across = (
            _places(side, cells).to(device)
            for side, cells in ((height, self.rows), (width, self.columns))
        )

    def masks(self, on: Tensor) -> Tensor:
        """Return the share (N,1,H,W), 0 to 1, of the change that is carried over at every pixel."""
        grid = on.reshape(-1, self.rows, self.columns).to(self._down.dtype)
        return (self._down @ grid @ self._across.T)[:, None].clamp(0, 1)

    def mixed(self, rows: Tensor, on: Tensor) -> Tensor:
        """Return images (N,3,H,W) on the 8-bit grid: x + m (x' - x).

        With all cells on this is x', and with none x, to the bit where both are on the 8-bit grid.
        rows: (N,) int64. on: (N,count) bool, row by row of the grid from the top left.
        """
        return to_8bit(self.original[rows] + self.masks(on) * self.change[rows])

    def amounts(self) -> Tensor:
        """Return the sum of |x'-x| in each cell, (B,count): over pixels, of the channels' mean."""
        return self.inside(torch.ones_like(self.change[:, :1]))[..., 0]

    def inside(self, regions: Tensor) -> Tensor:
        """Return the sum of |x'-x| in each cell and region, (B,count,R).

        regions: (B,R,H,W) float32, the share of each pixel in each region. The amounts of regions
        that cover every pixel once add up to `amounts`.
        """
        size = self.change.abs().mean(1, keepdim=True) * regions
        cells = self._down.T @ size @ self._across
        return cells.flatten(2).transpose(1, 2)


class Kinds:
    """The kinds of change as parts: the mean colour, what is coarse (above a cell's size), and the
    rest, which is fine.

    original, counterfactual: (B,3,H,W) in [0,1]. The kinds add up to x' - x. A tint or a brightness
    is colour, unless it leaves [0,1] and is clipped; a blur is coarse and fine. They have no place,
    and their kind distinguishes them from a change that has one.
    """

    count = len(KINDS)

    def __init__(self, original: Tensor, counterfactual: Tensor, grid: int = GRID) -> None:
        self.original, change = original, counterfactual - original
        height, width = change.shape[2:]
        size = (max(1, min(grid, height // 2)), max(1, min(grid, width // 2)))
        colour = change.mean((2, 3), keepdim=True)
        low = F.interpolate(F.adaptive_avg_pool2d(change, size), (height, width), mode="bilinear")
        coarse = low - low.mean((2, 3), keepdim=True)
        self.parts = torch.stack([colour.expand_as(change), coarse, change - colour - coarse], 1)

    def mixed(self, rows: Tensor, on: Tensor) -> Tensor:
        """Return images (N,3,H,W) on the 8-bit grid: x and the kinds that are on."""
        chosen = self.parts[rows] * on.to(self.parts.dtype)[:, :, None, None, None]
        return to_8bit(self.original[rows] + chosen.sum(1))

    def amounts(self) -> Tensor:
        """Return the sum of the absolute change of each kind, (B,3)."""
        return self.parts.abs().sum((2, 3, 4))


def draw_switches(seed: Tensor, mixtures: int, count: int) -> Tensor:
    """Return random switches (B,mixtures,count), bool; seed: (B,) int64, of the rows.

    The share of the parts that are on is uniform in (0,1), so every number of parts is as likely.
    Each set is followed by its complement (paired sampling, Covert & Lee 2021). Then what two parts
    add together divides equally between them in every pair of sets, and adds no noise. An odd
    number ends with a set alone. A row's sets depend on its seed and on `mixtures` and `count`.
    """
    pairs = (mixtures + 1) // 2
    drawn = []
    for generator in row_generators(seed):
        share = torch.rand((pairs, 1), generator=generator)
        half = torch.rand((pairs, count), generator=generator) < share
        drawn.append(torch.stack([half, ~half], 1).flatten(0, 1)[:mixtures])
    return torch.stack(drawn) if drawn else torch.zeros((0, mixtures, count), dtype=torch.bool)


def all_coalitions(players: int) -> Tensor:
    """Return every set of parts but the empty and the full one, (2^players - 2, players) bool.

    Row i is the set whose bits are those of i + 1, the first part the lowest bit.
    """
    numbers = torch.arange(1, 2**players - 1)[:, None]
    return (numbers >> torch.arange(players) & 1).bool()


def _places(side: int, cells: int) -> Tensor:
    """Return how much each pixel belongs to each cell, (side, cells); each row sums to 1."""
    edges = (torch.arange(cells + 1) * side / cells).round().long()
    hard = torch.zeros(side, cells)
    for cell in range(cells):
        hard[edges[cell] : edges[cell + 1], cell] = 1
    soft = max(1, round(side / cells / 4)) if cells > 1 else 0
    weights = torch.tensor([float(soft + 1 - abs(d)) for d in range(-soft, soft + 1)])
    padded = F.pad(hard.T[None], (soft, soft), mode="replicate")[0]
    blurred = F.conv1d(padded[:, None], (weights / weights.sum())[None, None])[:, 0]
    return blurred.T.contiguous()


def regions_as_maps(masks: Tensor, regions: int) -> Tensor:
    """Return masks (B,H,W) int64 as one map per region, (B,regions,H,W) float32, 0 or 1.

    Values outside 0 to regions - 1 count as the nearest region, so the maps cover every pixel once.
    """
    return F.one_hot(masks.clamp(0, regions - 1), regions).permute(0, 3, 1, 2).float()


def pack(on: Tensor) -> list[bytes]:
    """Return the switches of each row as bytes; on: (B,M,C) or (B,C) bool.

    Each set of C switches begins with a new byte and its highest bit. Otherwise the padding of
    fewer than eight parts could not be told from further sets.
    """
    return [np.packbits(row.numpy(), axis=-1).tobytes() for row in on.cpu()]
