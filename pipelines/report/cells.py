"""Heat maps of a grid's cells over a picture: as SVG with a text for each cell, and as pixels.

A cell's colour follows the square root of its share, so that a few per cent stay visible beside a
cell that holds most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipelines.report.figures import percent
from pipelines.report.pictures import Pixels, colours, opacity, overlay

LEAST_TOP = 0.1  # least share that is drawn in full colour, so that an even map is not all bright
NUMBERED = 0.05  # least share whose number is written into its cell
MOST_NUMBERED = 12  # columns of a grid whose cells are wide enough for a number
BRIGHT = 0.6  # level from which text on the colour is dark

FAINT, AGAINST = "faint", "against"  # marks of cells
FAINTLY = 0.3  # opacity of faint cells


class Grid(NamedTuple):
    """The cells of a picture; cells are numbered row by row from the top left."""

    columns: int
    rows: int
    width: int  # pixels of the picture
    height: int

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Return (left, top, right, bottom) in pixels of every cell."""
        across, down = edges(self.width, self.columns), edges(self.height, self.rows)
        return [
            (across[x], down[y], across[x + 1], down[y + 1])
            for y in range(self.rows)
            for x in range(self.columns)
        ]

    def place(self, cell: int) -> str:
        """Return the cell's place as text: `row 6, column 4`, counted from 1."""
        return f"row {cell // self.columns + 1}, column {cell % self.columns + 1}"

    def peak(self, shares: Sequence[float | None], what: str) -> str:
        """Return words on the cell with the largest share, for readers who do not see the map."""
        known = [(share, -cell) for cell, share in enumerate(shares) if share is not None]
        if not known:
            return "not measured"
        share, cell = max(known)
        return f"most at {self.place(-cell)}, {percent(share)} of the {what}"


def edges(side: int, cells: int) -> list[int]:
    """Return the cells + 1 edges of cells on a side of pixels, as the experiment rounds them."""
    return [int(edge) for edge in np.round(np.arange(cells + 1) * side / cells)]


def full_share(maps: Sequence[Sequence[float | None]]) -> float:
    """Return the share that a page draws in full colour: the largest of all, at least
    LEAST_TOP.
    """
    return max([LEAST_TOP, *(value for one in maps for value in one if value is not None)])


def levels(shares: Sequence[float | None], top: float) -> NDArray[np.float64]:
    """Return levels of colour in [0,1]; missing and negative shares are 0."""
    known = np.array([0.0 if share is None else share for share in shares])
    return np.sqrt(np.clip(known / top, 0, 1))


def overlay_cells(
    before: Pixels, shares: Sequence[float | None], grid: tuple[int, int], top: float
) -> Pixels:
    """Return the picture in dim grey with each cell's share over it in heat colours.

    grid: (columns, rows). ValueError where the shares are not one for each cell.
    """
    columns, rows = grid
    if len(shares) != columns * rows:
        raise ValueError(f"expected {columns * rows} shares, got {len(shares)}")
    height, width = before.shape[:2]
    every = levels(shares, top).reshape(rows, columns).astype(np.float32)
    down, across = (
        np.repeat(np.arange(cells), np.diff(edges(side, cells)))
        for side, cells in ((height, rows), (width, columns))
    )
    return overlay(before, every[down][:, across], 1.0)


def draw_cells(
    ground: str | None,
    grid: Grid,
    shares: Sequence[float | None],
    tips: Sequence[str],
    marks: Sequence[str],
    top: float,
    title: str,
) -> Markup:
    """Return the map as SVG over a picture.

    ground: data URI of the dim picture; None where there is none. tips: a text for each cell, shown
    where the mouse is. marks: for each cell "" or FAINT (little colour) or AGAINST (outlined).
    """
    every = levels(shares, top)
    parts: list[Markup] = []
    for cell, (left, up, right, down) in enumerate(grid.boxes()):
        level = every[cell : cell + 1]
        box = (left, up, right - left, down - up)
        opaque = float(opacity(level)[0]) * (FAINTLY if marks[cell] == FAINT else 1)
        parts.append(_cell(box, _hex(colours(level)[0]), opaque, tips[cell]))
        if marks[cell] == AGAINST:
            parts.append(
                Markup('<rect x="{}" y="{}" width="{}" height="{}" class="against"/>').format(*box)
            )
        share = shares[cell]
        numbered = grid.columns <= MOST_NUMBERED and marks[cell] != FAINT
        if numbered and share is not None and share >= NUMBERED:
            parts.append(_number(box, f"{100 * share:.0f}", bool(level[0] >= BRIGHT)))
    template = (
        Markup('<rect width="{}" height="{}" class="ground"/>')
        if ground is None
        else Markup('<image width="{}" height="{}" preserveAspectRatio="none" href="{}"/>')
    )
    below = template.format(grid.width, grid.height, ground)
    return Markup(
        '<svg class="cells" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>'
    ).format(grid.width, grid.height, title, below, Markup("").join(parts))


def _cell(box: tuple[int, int, int, int], colour: str, opaque: float, tip: str) -> Markup:
    template = (
        '<rect x="{}" y="{}" width="{}" height="{}" fill="{}" fill-opacity="{:.2f}">'
        "<title>{}</title></rect>"
    )
    return Markup(template).format(*box, colour, opaque, tip)


def _number(box: tuple[int, int, int, int], text: str, dark: bool) -> Markup:
    left, up, width, height = box
    size = 0.46 * min(width, height)
    template = '<text x="{}" y="{}" class="{}" style="font-size: {:.2f}px">{}</text>'
    x, y = left + width / 2, up + height / 2 + 0.36 * size
    return Markup(template).format(f"{x:.1f}", f"{y:.1f}", "dark" if dark else "light", size, text)


def _hex(rgb: NDArray[Any]) -> str:
    return "#" + "".join(f"{round(float(part)):02x}" for part in rgb)
