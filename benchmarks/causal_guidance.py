"""The sweep of causal guidance as one page: python -m benchmarks.causal_guidance
runs/causal-guidance > table.md

Beside the sweep's own figures, how many of the flips are refined images: where refinement undoes
the flip, ACE and CECAS answer with the pre-explanation, which is noise where the classifier has no
other way.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from storage.commit import iterate_commits, read_committed
from storage.uri import open_store

FIGURES = (
    "flip_rate",
    "second_agrees",
    "cout",
    "lpips[st-lpips]",
    "l1",
    "causal_share",
    "changed_spurious",
)
CHANGED = (
    "Smiling",
    "Blond_Hair",
    "Eyeglasses",
    "Male",
    "Pale_Skin",
    "Bangs",
    "Mouth_Slightly_Open",
    "Young",
)
CHANGED += ("Bushy_Eyebrows", "Wearing_Lipstick")


def refined(run: Path) -> tuple[int, int, int]:
    """Flipped rows, those whose stored image was refined, and rows in all."""
    flips = whole = rows = 0
    store = open_store(run)
    for commit in iterate_commits(store, "generate"):
        for row in read_committed(store, commit, ["flipped", "mask"]).to_pylist():
            rows, flips = rows + 1, flips + row["flipped"]
            whole += row["flipped"] and not bool(
                (np.asarray(Image.open(io.BytesIO(row["mask"]))) == 255).all()
            )
    return flips, whole, rows


def cell_of(figure: Any) -> str:
    """A figure with its interval."""
    if figure is None or pd.isna(figure["value"]):
        return "-"
    ends = "" if pd.isna(figure["low"]) else f" [{figure['low']:.2f}, {figure['high']:.2f}]"
    return f"{figure['value']:.3f}{ends}"


def main(folder: Path) -> None:
    found = pd.read_parquet(folder / "table.parquet")
    names = list(dict.fromkeys(found["cell"]))
    for figures, prefix in ((FIGURES, ""), (CHANGED, "changed")):
        print("| cell | flips, refined of them | " + " | ".join(figures) + " |")
        print("|---|---:|" + "---:|" * len(figures))
        for name in names:
            mine = {
                line["metric"]: line for line in found[found["cell"] == name].to_dict("records")
            }
            flips, whole, rows = refined(folder / name)
            values = []
            for figure in figures:
                line = mine.get(f"changed[{figure}]" if prefix else figure)
                values.append(f"{line['value']:.2f}" if prefix and line else cell_of(line))
            print(f"| {name} | {flips} of {rows}, {whole} | " + " | ".join(values) + " |")
        print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
