"""Places of an effect where the data have no masks: cells, the border, and halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.decides import Place
from counterfactory.metrics.effects import EffectSums, estimate, maps, shares

Floats = NDArray[np.float64]
BORDER = "border"
ROWS = ("top", "upper part", "middle", "lower part", "bottom")
COLUMNS = ("left", "left half", "centre", "right half", "right")


def rings_of(columns: int, rows: int) -> dict[str, NDArray[np.bool_]]:
    """Return named sets of cells, (rows*columns,) bool each: the border and the four halves."""
    across, down = np.meshgrid(np.arange(columns), np.arange(rows))
    border = (across == 0) | (across == columns - 1) | (down == 0) | (down == rows - 1)
    sets = {
        BORDER: border,
        "upper half": down < rows / 2,
        "lower half": down >= rows / 2,
        "left half": across < columns / 2,
        "right half": across >= columns / 2,
    }
    return {name: cells.ravel() for name, cells in sets.items()}


def ring_shares(sums: EffectSums, weights: Floats, grid: tuple[int, int]) -> dict[str, Floats]:
    """Return the share (N,) of the classifier's effect in each of `rings_of`; empty where the parts
    are not the grid's cells.
    """
    if grid[0] * grid[1] != sums.gram.shape[1]:
        return {}
    return {
        name: shares(maps(sums.classifier, weights, apart=cells)[..., 0])[:, cells].sum(1)
        for name, cells in rings_of(*grid).items()
    }


def places_of_cells(
    found: Floats, rings: Mapping[str, Floats], n: int, grid: tuple[int, int]
) -> list[Place]:
    """Return the three cells with the largest share of the effect, in words; the border first where
    it holds more and they are in it.

    found: (N,C) shares of the cells. rings: by `ring_shares`.
    """
    if not rings:
        return []
    columns, rows = grid
    order = np.argsort(-np.nan_to_num(found[0], nan=-np.inf))[:3]
    cells = [
        Place(cell_name(int(cell), columns, rows), estimate(found[:, cell], n)) for cell in order
    ]
    ring = Place(BORDER, estimate(rings[BORDER], n))
    top = sum(cell.share.value or 0.0 for cell in cells)
    if (ring.share.value or 0.0) > top and rings_of(*grid)[BORDER][order].all():
        return [ring, *cells]
    return cells


def cell_name(cell: int, columns: int, rows: int) -> str:
    """Return a cell's place in words; cells are numbered row by row from the top left."""
    down, across = divmod(cell, columns)
    where = f"{_word(down, rows, ROWS)} {_word(across, columns, COLUMNS)}"
    return f"cell {down + 1},{across + 1} of {rows}x{columns} ({where})"


def _word(place: int, of: int, words: Sequence[str]) -> str:
    if place == 0:
        return words[0]
    if place == of - 1:
        return words[-1]
    return words[1 + min(2, 3 * place // of)]
