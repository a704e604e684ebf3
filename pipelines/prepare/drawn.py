"""Drawn faces as a data set: any range of rows, with the drawn attributes as columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from counterfactory.worlds.faces import ATTRIBUTES, draw, labels, masks
from counterfactory.worlds.faces_masks import REGIONS
from pipelines.prepare.source import Row, Skipped, Source, png

CHUNK = 256  # faces drawn at once


def drawn_faces(
    rows: int,
    *,
    test_rows: int,
    seed: int,
    start: int,
    size: int,
    label: str,
    correlations: Mapping[str, float],
    masked: bool = False,
) -> Source:
    """Return the faces start .. start + rows of a seed, then test_rows for testing, labelled by one
    of their attributes.

    Further columns: every attribute, and `row`, the face's number. masked: add masks. ValueError
    for unknown attributes and invalid correlations.
    """
    nobody = np.zeros(0, dtype=np.int64)
    # raises now, not at the first row
    labels(seed, nobody, label=label, correlations=correlations)
    end = start + rows + test_rows

    def stream() -> Iterator[Row | Skipped]:
        for first in range(start, end, CHUNK):
            numbers = np.arange(first, min(first + CHUNK, end), dtype=np.int64)
            bits = labels(seed, numbers, label=label, correlations=correlations)
            faces = draw(seed, numbers, attributes=bits, size=size)
            outlines = (
                masks(seed, numbers, attributes=bits, size=size)
                if masked
                else [None] * len(numbers)
            )
            for number, drawn, face, mask in zip(
                numbers.tolist(), bits.tolist(), faces, outlines, strict=True
            ):
                truth = dict(zip(ATTRIBUTES, drawn, strict=True))
                id = f"face-{seed}-{number:07d}"
                split = "test" if number >= start + rows else "train"
                columns = {**truth, "row": number}
                yield Row(
                    id=id,
                    image=png(face),
                    path=f"{id}.png",
                    label=truth[label],
                    split=split,
                    columns=columns,
                    mask=None if mask is None else png(mask),
                )

    return Source(
        rows=stream(),
        total=rows + test_rows,
        columns={**dict.fromkeys(ATTRIBUTES, "bool"), "row": "int64"},
        regions=REGIONS if masked else (),
    )
