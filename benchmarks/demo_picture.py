"""The README's picture, out of the demo's two runs: python benchmarks/demo_picture.py runs/demo
docs/demo.png.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.report.pictures import change, full_scale, overlay
from storage.commit import iterate_commits, read_committed
from storage.uri import open_store

FACES, SIDE, LEFT, GAP = 10, 112, 190, 10
ROWS = ("original", "it looks at the mouth", "what changed", "it learnt hair", "what changed")


def pairs(run: str) -> dict[str, dict[str, Any]]:
    """Flipped rows of a run by id, in the order of the data."""
    store = open_store(run)
    columns = ["id", "row", "source", "flipped", "original", "counterfactual"]
    rows = [
        row
        for commit in iterate_commits(store, "generate")
        for row in read_committed(store, commit, columns).to_pylist()
    ]
    return {row["id"]: row for row in sorted(rows, key=lambda row: row["row"]) if row["flipped"]}


def pixels(row: dict[str, Any], name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row[name]["bytes"])).convert("RGB"))


def main(demo: str, out: str) -> None:
    """Both directions in turn, the first rows that both runs flipped: no picture is chosen by its
    looks.
    """
    plain, biased = pairs(f"{demo}/demo-plain"), pairs(f"{demo}/demo-biased")
    both = [key for key in plain if key in biased and plain[key]["source"] == biased[key]["source"]]
    halves = [
        [key for key in both if plain[key]["source"] == source][: FACES // 2] for source in (0, 1)
    ]
    shown = [key for two in zip(*halves, strict=True) for key in two]
    columns = []
    for key in shown:
        before = pixels(plain[key], "original")
        columns.append(
            [
                before,
                pixels(plain[key], "counterfactual"),
                None,
                pixels(biased[key], "counterfactual"),
                None,
            ]
        )
    changes = [[change(c[0], c[1]), change(c[0], c[3])] for c in columns]
    scale = full_scale([one for two in changes for one in two])
    page = Image.new(
        "RGB", (LEFT + len(shown) * (SIDE + 4), len(ROWS) * (SIDE + 4) + 2 * GAP), "white"
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    tops = [
        i * (SIDE + 4) + (GAP if i > 0 else 0) + (GAP if i > 2 else 0) for i in range(len(ROWS))
    ]
    for top, text in zip(tops, ROWS, strict=True):
        draw.text((6, top + SIDE // 2 - 9), text, fill=(40, 40, 46), font=font)
    for x, (column, (first, second)) in enumerate(zip(columns, changes, strict=True)):
        column[2], column[4] = overlay(column[0], first, scale), overlay(column[0], second, scale)
        for top, image in zip(tops, column, strict=True):
            page.paste(
                Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC),
                (LEFT + x * (SIDE + 4), top),
            )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    page.save(out, optimize=True)
    print(f"{out}: {len(shown)} faces")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
