"""Drawn faces: cartoon portraits in which every attribute has exactly one visible cause.

Row i of seed s is the same face in every chunk, order and table: each of its parameters is a hash
of (seed, row, parameter's name). With one bit of a row's attributes flipped, the same head is drawn
with only that one thing changed: its true counterfactual.
"""

from collections.abc import Mapping
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from counterfactory.worlds.faces_draw import Array, Look, paint
from counterfactory.worlds.faces_masks import outline

ATTRIBUTES: tuple[str, ...] = (
    "Smiling",  # the mouth's corners are up, else level or down
    # the hair is golden, else black, brown or auburn (the brows keep their own colour)
    "Blond_Hair",
    "Eyeglasses",  # dark frames around both eyes
    "Male",  # short hair and free ears, else hair down to the shoulders
    "Pale_Skin",  # light skin, else tan to brown
    "Bangs",  # a fringe covers the forehead
    "Mouth_Slightly_Open",  # teeth and dark between the lips, which curve as before
    "Young",  # no lines on forehead, beside the eyes and from nose to mouth
    "Bushy_Eyebrows",  # thick brows, else thin ones
    "Wearing_Lipstick",  # saturated red lips, else lips near the skin's colour
)
# Faces painted together: a few megabytes of float32, and an inner loop long enough for numpy.
CHUNK = 64

Bits = NDArray[np.bool_]
Rows = NDArray[np.int64]


def labels(
    seed: int, rows: Rows, *, label: str = "Smiling", correlations: Mapping[str, float] = {}
) -> Bits:
    """Return random attributes of each row, (N, A) in the order of ATTRIBUTES: fair coins, except
    for attributes that are correlated with the label.

    correlations[name] is the agreement probability P(name == label) within [0, 1]: 0.5 is
    independent, 1 fully confounded, 0 always opposite. The probability of every single attribute
    stays 0.5. ValueError where a name is unknown, a value is outside [0, 1], or the label is
    correlated with itself.
    """
    expect_name(label)
    for name, agreement in correlations.items():
        expect_name(name)
        if name == label:
            raise ValueError(
                f"expected correlations of attributes other than the label, got {name!r}"
            )
        if not 0 <= agreement <= 1:
            raise ValueError(f"expected correlations[{name!r}] within [0, 1], got {agreement!r}")
    target = uniform(seed, rows, f"label {label}") < 0.5
    bits = np.empty((len(rows), len(ATTRIBUTES)), dtype=np.bool_)
    for column, name in enumerate(ATTRIBUTES):
        agrees = uniform(seed, rows, f"label {name}") < correlations.get(name, 0.5)
        bits[:, column] = target if name == label else agrees == target
    return bits


def draw(seed: int, rows: Rows, *, attributes: Bits, size: int = 64) -> NDArray[np.uint8]:
    """Return pictures (N, size, size, 3) in RGB of rows (N,) with attributes (N, A); the shapes are
    designed for sizes 32 to 128.
    """
    expect_drawable(rows, attributes, size)
    images = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        images[part] = paint(appearance(seed, rows[part], attributes[part]), size)
    return images


def masks(seed: int, rows: Rows, *, attributes: Bits, size: int = 64) -> NDArray[np.uint8]:
    """Return the region that every pixel of `draw`'s pictures shows: (N, size, size), indices into
    counterfactory.worlds.faces_masks.REGIONS.
    """
    expect_drawable(rows, attributes, size)
    found = np.empty((len(rows), size, size), dtype=np.uint8)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        found[part] = outline(appearance(seed, rows[part], attributes[part]), size)
    return found


def expect_drawable(rows: Rows, attributes: Bits, size: int) -> None:
    if np.shape(attributes) != (len(rows), len(ATTRIBUTES)):
        raise ValueError(
            f"expected attributes of shape {(len(rows), len(ATTRIBUTES))}, got"
            f" {np.shape(attributes)}"
        )
    if size < 8:
        raise ValueError(f"expected size of at least 8, got {size}")


def expect_name(name: str) -> None:
    if name not in ATTRIBUTES:
        raise ValueError(f"expected an attribute out of {', '.join(ATTRIBUTES)}, got {name!r}")


def uniform(seed: int, rows: Rows, name: str) -> NDArray[np.float64]:
    """Return the named number of each row, uniform in [0, 1). It is a hash, so that a new name does
    not change the existing numbers.
    """
    key = np.array(
        [(seed * 0x9E3779B97F4A7C15 + (crc32(name.encode()) << 20)) % 2**64], dtype=np.uint64
    )
    bits = mix(np.asarray(rows).astype(np.int64).view(np.uint64) + mix(key))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's finaliser of the bits (Steele, Lea and Flood, 2014), with uint64
    overflow.
    """
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def appearance(seed: int, rows: Rows, attributes: Bits) -> Look:
    """Return all numbers that the painter needs: (N,) lengths in 1/64 of the picture, y downwards;
    (3, N) colours in 0 to 255.
    """

    def between(name: str, low: float, high: float) -> Array:
        return (low + (high - low) * uniform(seed, rows, name)).astype(np.float32)

    def has(name: str) -> Bits:
        return np.asarray(attributes)[:, ATTRIBUTES.index(name)]

    def either(name: str, on: tuple[float, float], off: tuple[float, float]) -> Array:
        """Return a number in one of two ranges that do not overlap; its relative place in the range
        does not depend on the bit.
        """
        return np.where(has(name), between(name, *on), between(name, *off))

    def shade(name: str, *stops: tuple[int, int, int]) -> Array:
        """Return a random colour between two stops, or in the triangle of three stops."""
        corner, *others = (np.array(stop, dtype=np.float32)[:, None] for stop in stops)
        far = others[0] + (others[-1] - others[0]) * between(f"{name} kind", 0, 1)
        return np.asarray(corner + (far - corner) * between(name, 0, 1), dtype=np.float32)

    def paint_pot(name: str, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
        """Return a colour (3, N) of any hue, from HSV."""
        hue = between(f"{name} hue", 0, 6) + np.array([[5], [3], [1]], dtype=np.float32)
        ramp = np.clip(np.minimum(hue % 6, 4 - hue % 6), 0, 1)
        grey = 1 - between(f"{name} saturation", *saturation) * ramp
        return np.asarray(255 * between(f"{name} value", *value) * grey, dtype=np.float32)

    skin = np.where(
        has("Pale_Skin"),
        shade("skin", (255, 232, 220), (246, 212, 192), (250, 218, 186)),
        shade("skin", (216, 156, 112), (140, 88, 58), (166, 100, 74)),
    )
    hair = np.where(
        has("Blond_Hair"),
        shade("hair", (238, 204, 118), (210, 158, 70), (230, 192, 128)),
        shade("hair", (34, 27, 32), (104, 64, 40), (112, 46, 32)),
    )
    natural = skin * 0.62 + np.array([[66], [28], [26]], dtype=np.float32)
    lipstick = shade("lipstick", (214, 18, 44), (176, 8, 60), (226, 30, 84))
    return {
        "centre x": between("centre x", -2.5, 2.5),
        "centre y": between("centre y", -1.5, 1.5),
        "scale": between("scale", 0.95, 1.06),
        "tilt": between("tilt", -0.07, 0.07),
        "light x": between("light x", -1, 1),
        "light y": between("light y", -1, -0.3),
        "backdrop": paint_pot("backdrop", (0.12, 0.42), (0.66, 0.96)),
        "glow": between("glow", 0.1, 0.3),
        "glow x": between("glow x", -1, 1),
        "clothes": paint_pot("clothes", (0.3, 0.65), (0.35, 0.85)),
        "shoulders": between("shoulders", 21, 26),
        "width": between("width", 13.6, 15.8),
        "height": between("height", 18, 19.6),
        "jaw": between("jaw", 0.08, 0.26),
        "skin": skin,
        "blush": between("blush", 0.12, 0.4),
        "hair": hair,
        "volume": between("volume", 1.8, 3.6),
        "gloss": between("gloss", 0.12, 0.3),
        "part": between("part", -4.5, 4.5),
        "hairline": between("hairline", -15.8, -14.4),
        "temple": between("temple", 0.045, 0.06),
        "fringe": np.where(has("Bangs"), between("fringe", -9.6, -8.4), np.float32(-99)),
        "sweep": between("sweep", -0.05, 0.05),
        "strands": between("strands", 0, 1),
        "long": (~has("Male")).astype(np.float32),
        "length": between("length", 16, 20),
        "eye x": between("eye x", 6.1, 7.2),
        "eye width": between("eye width", 2.7, 3.2),
        "eye height": between("eye height", 1.7, 2.3),
        "gaze": between("gaze", -0.6, 0.6),
        "iris": shade("iris", (58, 36, 22), (44, 110, 176), (66, 128, 72)),
        "brow": either("Bushy_Eyebrows", (1.25, 1.6), (0.3, 0.42)),
        "brow y": between("brow y", -6.4, -5.9),
        "arch": between("arch", 0.5, 1.3),
        "brow colour": shade("brow", (46, 32, 26), (74, 48, 36), (82, 46, 30)),
        "brow slope": between("brow slope", -0.08, 0.08),
        "nose": between("nose", 5, 6.2),
        "nose width": between("nose width", 1.7, 2.4),
        "mouth y": between("mouth y", 10.4, 11.2),
        "mouth width": between("mouth width", 5.6, 6.8),
        "lift": either("Smiling", (2.2, 3.4), (-2, 0)),
        "open": either("Mouth_Slightly_Open", (2.3, 3.1), (0, 0)),
        "lips": between("lip", 0.8, 1.15),
        "lip colour": np.where(has("Wearing_Lipstick"), lipstick, natural),
        "age": (~has("Young")).astype(np.float32),
        "glasses": has("Eyeglasses").astype(np.float32),
        "frame": shade("frame", (24, 22, 28), (70, 30, 22), (20, 34, 84)),
        "lens width": between("lens width", 4.3, 4.9),
        "lens height": between("lens height", 3.6, 4.2),
    }
