"""Segmentation masks of drawn faces: the region that every pixel shows, exact to the drawing.

A pixel belongs to the last drawn region that covers at least half of it. Some attributes change a
part's shape but add or remove nothing. Such a part has a region wider than any shape it may take:
`mouth` surrounds every mouth that this face could have, smiling or not, open or not, and `brows`
surrounds thick and thin brows. A mask therefore shows hair, glasses and the places of all parts,
but nothing about the mouth's shape: that belongs to the region's style.
"""

import numpy as np
from numpy.typing import NDArray

from counterfactory.worlds.faces_draw import (
    Array,
    Look,
    Patch,
    behind_edge,
    cap_edge,
    ear_ellipse,
    ellipse,
    hair_ellipse,
    head_ellipse,
    lens_and_frame,
    lock_edge,
    neck_edge,
    sheet_of,
    shoulders_edge,
)

# In the order of their indices.
REGIONS = (
    "background",
    "cloth",
    "neck",
    "skin",
    "nose",
    "mouth",
    "eyes",
    "brows",
    "glasses",
    "hair",
)
BACKGROUND, CLOTH, NECK, SKIN, NOSE, MOUTH, EYES, BROWS, GLASSES, HAIR = range(len(REGIONS))


def outline(look: Look, size: int) -> NDArray[np.uint8]:
    """Return the masks of N faces, drawn back to front like the pictures: (N, size, size), indices
    into REGIONS.
    """
    sheet = sheet_of(look, np.zeros((1, size, size, len(look["width"])), dtype=np.float32))
    patch = sheet.cut(-14, 30, 22)
    stamp(patch, HAIR, behind_edge(patch, look), look["long"])
    patch = sheet.cut(12, 40, 40)
    stamp(patch, CLOTH, shoulders_edge(patch, look))
    patch = sheet.cut(10, 32, 10)
    stamp(patch, NECK, neck_edge(patch))
    patch = sheet.cut(-5, 8, 20)
    stamp(patch, SKIN, (ear_ellipse(patch, look) - 1) * 3.2)
    patch = sheet.cut(-21, 21, 17)
    stamp(patch, SKIN, (head_ellipse(patch, look) - 1) * 16)
    patch = sheet.cut(-4, 9, 6)
    stamp(patch, NOSE, nose_room(patch, look))
    patch = sheet.cut(6, 18, 9)
    stamp(patch, MOUTH, mouth_room(patch, look))
    patch = sheet.cut(-5, 5, 12)
    stamp(patch, EYES, eye_room(patch, look))
    patch = sheet.cut(-10, -2, 13)
    stamp(patch, BROWS, brow_room(patch, look))
    patch = sheet.cut(-5, 5, 17)
    stamp(patch, GLASSES, lens_and_frame(patch, look)[1], look["glasses"])
    patch = sheet.cut(-12, 26, 22)
    stamp(patch, HAIR, lock_edge(patch, look), look["long"])
    patch = sheet.cut(-24, 2, 20)
    stamp(patch, HAIR, cap_edge(patch, look, hair_ellipse(patch, look)))
    return np.ascontiguousarray(sheet.rgb[0].astype(np.uint8).transpose(2, 0, 1))


def stamp(patch: Patch, region: int, distance: Array, there: Array | float = 1.0) -> None:
    """Assign to a region every pixel that it covers at least half of; there: (N,), 0 for faces
    without the region.
    """
    patch.rgb[0][patch.cover(distance) * there >= 0.5] = region


def mouth_room(patch: Patch, look: Look) -> Array:
    """Return the signed distance to a box with round corners around every mouth that this face may
    have, for any `lift` and `open`.
    """
    across, down = (
        np.square(patch.x / (look["mouth width"] + 1.6)),
        np.square((patch.y - look["mouth y"] - 1.9) / 5.2),
    )
    return np.asarray((np.sqrt(np.sqrt(np.square(across) + np.square(down))) - 1) * 5)


def eye_room(patch: Patch, look: Look) -> Array:
    """Return the signed distance to an outline around each eye and its lashes."""
    across = patch.x - np.copysign(look["eye x"], patch.x)
    return np.asarray(
        (ellipse(across, patch.y, look["eye width"] * 1.35, look["eye height"] * 1.35) - 1) * 3
    )


def brow_room(patch: Patch, look: Look) -> Array:
    """Return the signed distance to an outline around each brow at its thickest."""
    across = np.abs(patch.x) - look["eye x"] - 0.2
    along = across / 4.1
    along *= along
    off = np.abs(
        patch.y - look["brow y"] - look["arch"] * (along - 0.4) - look["brow slope"] * across
    )
    return np.asarray(np.maximum(off - 1.9 * (1 - 0.06 * across) - 0.5, (along - 1) * 2 - 0.6))


def nose_room(patch: Patch, look: Look) -> Array:
    """Return the signed distance to an outline around the nose's ridge and wings."""
    tip = patch.y - look["nose"]
    wings = (ellipse(patch.x, tip - 0.3, look["nose width"] + 1.4, 2.3) - 1) * 2.3
    ridge = (ellipse(patch.x, tip + 3.2, 2.9, 4.8) - 1) * 3
    return np.asarray(np.minimum(wings, ridge))
