"""Fixed images and a black box's answers to them, which show whether the model behind it is still
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from counterfactory.models.wrapping.black_box import BlackBox

IMAGES = 16
DIGITS = 3  # of a probability: another batch or another machine changes less
MARGIN = 1e-4  # of the two likeliest classes: a nearer verdict may differ


def fixed_images(height: int, width: int) -> np.ndarray:
    """Return IMAGES images (IMAGES,H,W,3) uint8 of coloured blocks, the same everywhere.

    The blocks have 1 to 16 px per side of a grid, so that coarse and fine filters answer.
    """
    random = np.random.Generator(np.random.PCG64(2026))
    images = []
    for number in range(IMAGES):
        grid = 2 ** (1 + number % 4)
        blocks = random.integers(0, 256, (grid, grid, 3), dtype=np.uint8)
        down, across = np.arange(height) * grid // height, np.arange(width) * grid // width
        images.append(blocks[down][:, across])
    return np.stack(images)


def probe(model: BlackBox, height: int, width: int) -> dict[str, Any]:
    """Return the answers to the fixed images at a working size, and the version where there is
    one. Asks the model, never earlier answers.
    """
    import torch

    images = torch.from_numpy(fixed_images(height, width)).permute(0, 3, 1, 2).float() / 255
    pixels = model.pixels(images)
    parts = [pixels[at : at + model.rows] for at in range(0, len(pixels), model.rows)]
    found = np.concatenate([model.ask(part) for part in parts])
    return {
        "version": model.adapter.version(),
        "outputs": [[round(float(p), 6) for p in row] for row in found],
    }


def drift(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return how the answers differ from earlier ones, in words; "" where they do not.

    Answers differ where a probability rounded to DIGITS differs by more than rounding does, or
    where a verdict does whose two likeliest classes are more than MARGIN apart.
    """
    versions = before["version"], now["version"]
    if all(versions) and versions[0] != versions[1]:  # it may be asked for in vain
        return f"version {now['version']}, and it was {before['version']}"
    first, second = np.array(before["outputs"]), np.array(now["outputs"])
    if first.shape != second.shape:
        return f"answers of shape {second.shape}, and it was {first.shape}"
    gaps = np.abs(first - second).max(1)
    changed = int((gaps > 10.0**-DIGITS).sum())
    if changed:
        return (
            f"other answers to {changed} of {len(first)} fixed images (a probability moved by"
            f" {gaps.max():.2g})"
        )
    flips = first.argmax(1) != second.argmax(1)
    apart = np.minimum(_margin(first), _margin(second)) > MARGIN
    turned = int((flips & apart).sum())
    return f"another verdict on {turned} of {len(first)} fixed images" if turned else ""


def _margin(rows: np.ndarray) -> np.ndarray:
    ordered = np.sort(rows, axis=1)
    margins: np.ndarray = ordered[:, -1] - ordered[:, -2]
    return margins
