"""Places of an effect where the data have no masks: cells, the border, and halves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.decides import Place
from counterfactory.metrics.effects import estimate

Floats = NDArray[np.float64]
ROWS = ("top", "upper part", "middle", "lower part", "bottom")
COLUMNS = ("left", "left half", "centre", "right half", "right")


def rings_of(columns: int, rows: int) -> dict[str, NDArray[np.bool_]]:
    """Return named sets of cells, (rows*columns,) bool each: the border and the four halves."""
    across, down = np.meshgrid(np.arange(columns), np.arange(rows))
    border = (across == 0) | (across == columns - 1) | (down == 0) | (down == rows - 1)
    sets = {
        "border": border,
        "upper half": down < rows / 2,
        "lower half": down >= rows / 2,
        "left half": across < columns / 2,
        "right half": across >= columns / 2,
    }
    return {name: cells.ravel() for name, cells in sets.items()}


def places_of_cells(found: Floats, n: int, grid: tuple[int, int]) -> list[Place]:
    """Return the three cells with the largest share of the effect, in words; the border where it
    holds more.
    """
    columns, rows = grid
    if columns * rows != found.shape[1]:
        return []
    order = np.argsort(-np.nan_to_num(found[0], nan=-np.inf))[:3]
    cells = [
        Place(_cell_name(int(cell), columns, rows), estimate(found[:, cell], n)) for cell in order
    ]
    border = rings_of(columns, rows)["border"]
    ring = Place("border", estimate(found[:, border].sum(1), n))
    top = sum(cell.share.value or 0.0 for cell in cells)
    if (ring.share.value or 0.0) > top and border[order].all():
        return [ring, *cells]
    return cells


def _cell_name(cell: int, columns: int, rows: int) -> str:
    down, across = divmod(cell, columns)
    where = f"{_word(down, rows, ROWS)} {_word(across, columns, COLUMNS)}"
    return f"cell {down + 1},{across + 1} of {rows}x{columns} ({where})"


def _word(place: int, of: int, words: Sequence[str]) -> str:
    if place == 0:
        return words[0]
    if place == of - 1:
        return words[-1]
    return words[1 + min(2, 3 * place // of)]
