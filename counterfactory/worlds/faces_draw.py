"""The painter of drawn faces: signed-distance shapes with smooth edges on float32 grids, with the
faces in the last axis.

With faces last, a number per face broadcasts without reshaping, and every shape uses only the part
of the picture that it can reach. The code uses only sums, products, quotients and square roots,
which IEEE 754 rounds in exactly one way, so that the bytes are the same on every machine and in
every chunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # always float32; numpy's stubs lose the type in arithmetic with Python floats
Look = Mapping[str, Array]

CENTRE = 31.5  # centre of the unmoved head, in a picture of 64 x 64 units
# The farthest that centre, scale and tilt may move a point of the head, in units.
REACH = 4.5


@dataclass(frozen=True)
class Patch:
    """A window of all pictures: rgb (3, h, w, N), the head's coordinates x and y (h, w, N), and the
    width of a pixel (N,).
    """

    rgb: Array
    x: Array
    y: Array
    pixel: Array

    def cut(self, top: float, bottom: float, half: float) -> "Patch":
        """Return the part that can contain the head's own box: y in top..bottom, x in
        -half..half.
        """
        size = self.rgb.shape[1]

        def span(low: float, high: float) -> slice:
            ends = np.clip(
                np.rint((np.array([low - REACH, high + REACH]) + CENTRE) * size / 64), 0, size
            )
            return slice(int(ends[0]), int(ends[1]))

        rows, columns = span(top, bottom), span(-half, half)
        return Patch(
            self.rgb[:, rows, columns], self.x[rows, columns], self.y[rows, columns], self.pixel
        )

    def cover(self, distance: Array) -> Array:
        """Return how much of each pixel lies inside a shape, 0 to 1, from the signed distance to
        its edge.
        """
        share = distance / -self.pixel
        share += 0.5
        return np.clip(share, 0, 1, out=share)

    def lay(self, colour: Array, share: Array) -> None:
        """Blend a colour, (3, N) or (3, h, w, N), over the patch."""
        step = (colour if colour.ndim == 4 else colour[:, None, None]) - self.rgb
        step *= share
        self.rgb[...] += step


def paint(look: Look, size: int) -> NDArray[np.uint8]:
    """Return N faces, painted back to front: (N, size, size, 3)."""
    sheet = backdrop(look, size)
    hair_behind(sheet, look)
    body(sheet, look)
    head(sheet, look)
    wrinkles(sheet, look)
    nose(sheet, look)
    mouth(sheet, look)
    eyes(sheet, look)
    brows(sheet, look)
    glasses(sheet, look)
    hair(sheet, look)
    return np.clip(np.rint(sheet.rgb), 0, 255).astype(np.uint8).transpose(3, 1, 2, 0)


def ellipse(x: Array, y: Array, width: Array | float, height: Array | float) -> Array:
    """Return where a point lies within an ellipse around the origin: 0 in the middle, 1 on the
    edge.
    """
    across, down = x / width, y / height
    across *= across
    down *= down
    across = across + down
    root: Array = np.sqrt(across, out=across)
    return root


def bump(share: Array) -> Array:
    """Return a smooth hill: 1 where share is 0, falling to 0 where share is 1 or more."""
    hill = np.clip(1 - share * share, 0, 1)
    return np.asarray(hill * hill)


def backdrop(look: Look, size: int) -> Patch:
    """Return an empty sheet: one colour with a soft glow behind the head, and the head's
    coordinates.
    """
    units = units_of(size)
    glow = bump(
        ellipse(units[None, :, None] - 18 * look["glow x"], units[:, None, None] + 10, 52.0, 52.0)
    )
    rgb = look["backdrop"][:, None, None] * (1 - look["glow"]) + (255 * look["glow"]) * glow
    return sheet_of(look, rgb)


def sheet_of(look: Look, rgb: Array) -> Patch:
    """Return a whole picture (C, size, size, N) with the head's coordinates."""
    size = rgb.shape[1]
    units = units_of(size)
    across, down = units[None, :, None] - look["centre x"], units[:, None, None] - look["centre y"]
    x, y = (
        (across + look["tilt"] * down) / look["scale"],
        (down - look["tilt"] * across) / look["scale"],
    )
    return Patch(rgb, x, y, np.float32(64 / size) / look["scale"])


def units_of(size: int) -> Array:
    """Return the centres of the pixels along a side, in units from the centre of the unmoved
    head.
    """
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(
        64 / size
    ) - np.float32(CENTRE)


def body(sheet: Patch, look: Look) -> None:
    """Draw shoulders in clothes, and the neck with the chin's shadow."""
    low = sheet.cut(12, 40, 40)
    shoulders = low.cover(shoulders_edge(low, look))
    lit = 1 + 0.1 * (look["light x"] * low.x / 20) - 0.012 * (low.y - 28)
    low.lay(look["clothes"][:, None, None] * lit, shoulders)
    neck = sheet.cut(10, 32, 10)
    lit = 0.7 + 0.022 * np.clip(neck.y - 15, 0, 12)
    neck.lay(look["skin"][:, None, None] * lit, neck.cover(neck_edge(neck)))


def shoulders_edge(patch: Patch, look: Look) -> Array:
    """Return the signed distance to the clothes' outline."""
    return np.asarray((ellipse(patch.x, patch.y - 36, look["shoulders"], 13.5) - 1) * 15)


def neck_edge(patch: Patch) -> Array:
    """Return the signed distance to the neck's outline."""
    width = np.abs(patch.x) - (6 + 0.03 * np.square(np.clip(patch.y - 21, 0, None)))
    return np.asarray(np.maximum(width, (ellipse(patch.x, patch.y - 14, 10.5, 14.5) - 1) * 12))


def head(sheet: Patch, look: Look) -> None:
    """Draw the ears, then the head: an ellipse that narrows towards the chin, shaded by light and
    with red cheeks.
    """
    width, height = look["width"], look["height"]
    sides = sheet.cut(-5, 8, 20)
    ear = ear_ellipse(sides, look)
    sides.lay(look["skin"][:, None, None] * (0.78 + 0.14 * ear), sides.cover((ear - 1) * 3.2))
    full = sheet.cut(-21, 21, 17)
    share = head_ellipse(full, look)
    light = look["light x"] * (full.x / width) + look["light y"] * (full.y / height)
    lit = 1.0 + 0.09 * light - 0.12 * np.square(np.square(share))
    tint = 1 - np.array([0.02, 0.3, 0.22], dtype=np.float32)[:, None, None, None] * (
        look["blush"] * bump(ellipse(np.abs(full.x) - 8.6, full.y - 6.2, 5.5, 4.6))
    )
    full.lay(look["skin"][:, None, None] * lit * tint, full.cover((share - 1) * 16))


def ear_ellipse(patch: Patch, look: Look) -> Array:
    """Return where a point lies within an ear: 1 on its edge."""
    return ellipse(np.abs(patch.x) - look["width"], patch.y - 1.2, 2.7, 4.0)


def head_ellipse(patch: Patch, look: Look) -> Array:
    """Return where a point lies within the head, which narrows towards the chin: 1 on its edge."""
    lower = np.clip(patch.y / look["height"], 0, 1)
    return ellipse(patch.x * (1 + look["jaw"] * lower), patch.y, look["width"], look["height"])


def wrinkles(sheet: Patch, look: Look) -> None:
    """Draw age: lines on the forehead (under a fringe), bags under the eyes, and folds from the
    nose to the sides of the mouth.
    """
    colour = look["skin"] * np.array([[0.55], [0.46], [0.42]], dtype=np.float32)

    def stroke(patch: Patch, off: Array, along: Array, strength: float) -> None:
        """Draw a soft line where off is 0, fading towards where along is 1."""
        line = bump(off / (0.45 + 0.5 * patch.pixel)) * np.clip(2 - 2 * np.abs(along), 0, 1)
        patch.lay(colour, line * (strength * look["age"]))

    brow = sheet.cut(-14, -8, 9)
    for level in (-12.4, -9.8):
        stroke(brow, brow.y - level - 0.012 * np.square(brow.x), brow.x / 8.5, 0.75)
    bag = sheet.cut(2, 6, 11)
    across = np.abs(bag.x) - look["eye x"]
    stroke(bag, bag.y - 3.8 + 0.13 * np.square(across), across / 3.0, 0.6)
    fold = sheet.cut(4, 14, 11)
    down = fold.y - 8.8
    stroke(
        fold, (np.abs(fold.x) - 7.8 - 0.45 * down + 0.075 * np.square(down)) * 0.85, down / 4.2, 0.8
    )


def nose(sheet: Patch, look: Look) -> None:
    """Draw a ridge lit on one side, and a soft shadow under the tip."""
    patch = sheet.cut(-3, 9, 5)
    tip = patch.y - look["nose"]
    side = np.where(look["light x"] > 0, patch.x, -patch.x)
    ridge = bump(ellipse(side + 1.5, tip + 3.4, 1.3, 4.4)) * 0.22
    patch.lay(look["skin"] * np.float32(0.6), ridge)
    wings = bump(
        ellipse(patch.x, tip - 0.55 + 0.12 * np.square(patch.x), look["nose width"] + 0.9, 1.25)
    )
    patch.lay(look["skin"] * np.array([[0.62], [0.5], [0.46]], dtype=np.float32), wings * 0.85)
    shine = bump(ellipse(patch.x, tip + 1.0, 1.4, 1.5))
    patch.lay(np.full_like(look["skin"], 255), shine * 0.22)


def mouth(sheet: Patch, look: Look) -> None:
    """Draw two lips along a parabola whose corners may be lifted; in an open mouth the lower lip
    drops and shows teeth and dark.
    """
    patch = sheet.cut(6, 17, 8)
    across = patch.x / look["mouth width"]
    across *= across
    arc = np.clip(1 - across, 0, 1)
    slope = np.sqrt(1 + np.square(2 * look["lift"] * patch.x / np.square(look["mouth width"])))
    # distance below the seam at which the upper lip ends
    below = patch.y - look["mouth y"] + look["lift"] * (across - 0.4)
    gap = look["open"] * arc
    round_off = np.sqrt(arc) * look["lips"]
    ends = (across - 1) * (0.5 * look["mouth width"])
    lips = np.maximum(np.maximum(-below - round_off, below - gap - 1.25 * round_off) / slope, ends)
    shade = 1 + 0.08 * np.clip(below - gap, -1, 1)
    patch.lay(look["lip colour"][:, None, None] * shade, patch.cover(lips))
    seam = patch.cover(
        np.maximum((np.abs(below - 0.5 * gap) - 0.5 * gap - 0.3) / slope, ends + 0.35)
    )
    patch.lay(
        look["lip colour"] * np.float32(0.22) + np.array([[16], [4], [6]], dtype=np.float32), seam
    )
    teeth = patch.cover(np.maximum(np.abs(below - 0.3 * gap) - 0.3 * gap, ends + 1) / slope) * (
        look["open"] > 0
    )
    patch.lay(np.full_like(look["skin"], 246), teeth)


def eyes(sheet: Patch, look: Look) -> None:
    """Draw whites, irises looking one way, pupils with a glint, and lashes above."""
    patch = sheet.cut(-4, 4, 11)
    across = patch.x - np.copysign(look["eye x"], patch.x)
    share = ellipse(across, patch.y, look["eye width"], look["eye height"])
    white = patch.cover((share - 1) * 2.3)
    patch.lay(np.full_like(look["skin"], 250), white)
    ahead = ellipse(across - look["gaze"], patch.y, 1.0, 1.0)
    patch.lay(look["iris"], patch.cover(ahead - 1.65) * white)
    patch.lay(np.full_like(look["skin"], 14), patch.cover(ahead - 0.85) * white)
    glint = ellipse(across - look["gaze"] - 0.55, patch.y + 0.6, 1.0, 1.0)
    patch.lay(np.full_like(look["skin"], 255), patch.cover(glint - 0.45) * white)
    lash = patch.cover(np.abs(share - 1.06) * 2.3 - 0.4) * np.clip(0.3 - patch.y, 0, 1)
    patch.lay(look["brow colour"] * np.float32(0.5), lash * np.float32(0.9))


def brows(sheet: Patch, look: Look) -> None:
    """Draw two arched strokes, thick or thin, tapering outwards."""
    patch = sheet.cut(-9, -3, 12)
    across = np.abs(patch.x) - look["eye x"] - 0.2
    along = across / 4.1
    along *= along
    off = np.abs(
        patch.y - look["brow y"] - look["arch"] * (along - 0.4) - look["brow slope"] * across
    )
    thick = look["brow"] * (1 - 0.06 * across)
    patch.lay(look["brow colour"], patch.cover(np.maximum(off - thick, (along - 1) * 2)))


def glasses(sheet: Patch, look: Look) -> None:
    """Draw two rims with faintly white lenses, a bridge, and arms to the ears."""
    patch = sheet.cut(-5, 5, 17)
    lens, frame = lens_and_frame(patch, look)
    patch.lay(
        np.full_like(look["skin"], 255), patch.cover(lens) * (np.float32(0.14) * look["glasses"])
    )
    patch.lay(look["frame"], patch.cover(frame) * look["glasses"])


def lens_and_frame(patch: Patch, look: Look) -> tuple[Array, Array]:
    """Return the signed distances to the outlines of the lenses, and of rims, bridge and arms."""
    out = np.abs(patch.x)
    lens = ellipse(out - look["eye x"], patch.y - 0.3, look["lens width"], look["lens height"]) - 1
    lens *= 4.2
    rim = np.abs(lens) - 0.55
    bar = np.maximum(np.abs(patch.y + 0.9) - 0.5, np.maximum(-lens, out - look["width"]))
    return lens, np.minimum(rim, bar)


def hair_ellipse(patch: Patch, look: Look) -> Array:
    """Return where a point lies within the hair's outline above the head: 1 on its edge."""
    return ellipse(
        patch.x, patch.y + 1, look["width"] + look["volume"], look["height"] + look["volume"]
    )


def hair_colour(patch: Patch, look: Look, share: Array) -> Array:
    """Return the hair's colour under the light, with a glossy band along its outline: (3, h, w,
    N).
    """
    lit = 0.96 + 0.1 * (look["light x"] * patch.x / 16 + look["light y"] * patch.y / 24)
    band = bump((share - 0.88) / 0.13) * np.clip(patch.y / -14, 0, 1) * look["gloss"]
    return np.asarray(look["hair"][:, None, None] * (lit + 0.4 * band) + 70 * band)


def hair_behind(sheet: Patch, look: Look) -> None:
    """Draw the part of long hair that hangs behind neck and shoulders."""
    patch = sheet.cut(-14, 30, 22)
    patch.lay(look["hair"] * np.float32(0.74), patch.cover(behind_edge(patch, look)) * look["long"])


def behind_edge(patch: Patch, look: Look) -> Array:
    """Return the signed distance to the outline of long hair behind the neck."""
    share = ellipse(
        patch.x, patch.y - 5, look["width"] + look["volume"] + 0.8, 1.25 * look["length"]
    )
    return np.asarray((share - 1) * 18)


def hair(sheet: Patch, look: Look) -> None:
    """Draw the hair above the face down to hairline or fringe, and long hair's two locks over ears
    and shoulders.
    """
    side = sheet.cut(-12, 26, 22)
    lock = side.cover(lock_edge(side, look))
    side.lay(hair_colour(side, look, hair_ellipse(side, look)), lock * look["long"])
    top = sheet.cut(-24, 2, 20)
    share = hair_ellipse(top, look)
    cap = top.cover(cap_edge(top, look, share))
    top.lay(hair_colour(top, look, share), cap)


def lock_edge(patch: Patch, look: Look) -> Array:
    """Return the signed distance to the outline of long hair's two locks."""
    lock = ellipse(
        np.abs(patch.x) - look["width"] - 0.5 * look["volume"] + 0.012 * np.square(patch.y - 2),
        patch.y - 4,
        1.6 + 0.6 * look["volume"],
        look["length"],
    )
    return np.asarray((lock - 1) * 4)


def cap_edge(patch: Patch, look: Look, share: Array) -> Array:
    """Return the signed distance to the outline of the hair above the face; share: of
    hair_ellipse.
    """
    bend = look["temple"] * (patch.x - 0.7 * look["part"])
    line = look["hairline"] + bend * (patch.x - 0.7 * look["part"])
    wave = patch.x / 5 + look["strands"]
    fringe = look["fringe"] + look["sweep"] * patch.x + 3 * np.square(wave - np.rint(wave))
    below = np.maximum(
        (patch.y - np.maximum(line, fringe)) / np.sqrt(1 + 4 * np.square(bend)), patch.y + 1
    )
    return np.asarray(np.maximum((share - 1) * 18, below))
