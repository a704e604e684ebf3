"""The picture of `demo --loop`: where decisions lie in both audits, and what lies between.

python benchmarks/loop_picture.py runs/demo docs/loop.png
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from storage.uri import open_store

SIDE, GAP, TEXT = 132, 8, 250
INK, QUIET, HOT = (30, 34, 40), (105, 110, 118), (255, 176, 32)


def picture(encoded: str) -> Image.Image:
    """A mean picture of a table, at SIDE pixels."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def heat(direction: dict[str, Any], grid: tuple[int, int]) -> Image.Image:
    """The effect map over the grey mean picture: the brighter a cell, the larger its share."""
    shares = np.clip(np.array(direction["map"]).reshape(grid[1], grid[0]), 0, None)
    alpha = np.kron((shares / shares.max()) ** 0.75, np.ones((16, 16)))
    cover = Image.fromarray((alpha * 235).astype(np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.NEAREST
    )
    grey = picture(direction["before"]).convert("L").point(lambda v: 30 + v // 3).convert("RGB")
    grey.paste(Image.new("RGB", (SIDE, SIDE), HOT), mask=cover)
    return grey


def main(demo: str, out: str) -> None:
    """One line for each audit, both directions; the retraining's numbers between them."""
    audits = [
        json.loads(open_store(f"{demo}/{name}").read("interventions/table.json"))
        for name in ("demo-biased", "demo-mended")
    ]
    arms = json.loads(open_store(f"{demo}/demo-retrain").read("table.json"))["arms"]
    worst = [
        next(iter(arms[arm]["seeds"].values()))["worst"]["value"] for arm in ("before", "line")
    ]
    width, band = TEXT + 6 * (SIDE + GAP), 46
    page = Image.new("RGB", (width, 2 * SIDE + band + 2 * GAP), "white")
    draw, big, small = ImageDraw.Draw(page), ImageFont.load_default(22), ImageFont.load_default(14)
    for row, (title, table) in enumerate(zip(("audit", "second audit"), audits, strict=True)):
        top = GAP + row * (SIDE + band)
        place = table["places"][0]
        draw.text((6, top + 22), title, fill=QUIET, font=small)
        share = f"{place['name']} {100 * place['share']['value']:.0f} %"
        draw.text((6, top + 42), share, fill=INK, font=big)
        draw.text((6, top + 72), "of the effect on the decision", fill=QUIET, font=small)
        for column, direction in enumerate(table["directions"][:2]):
            left = TEXT + column * 3 * (SIDE + GAP)
            shown = [picture(direction["before"]), picture(direction["after"])]
            for place_, image in enumerate([*shown, heat(direction, tuple(table["grid"]))]):
                page.paste(image, (left + place_ * (SIDE + GAP), top))
    told = (
        f"retrained with counterfactuals: right in the worst group {100 * worst[0]:.0f} %"
        f" -> {100 * worst[1]:.0f} %"
    )
    draw.text((6, GAP + SIDE + 12), told, fill=INK, font=ImageFont.load_default(18))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    page.save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
