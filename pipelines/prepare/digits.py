"""scikit-learn's digits: 1,797 real ones, 8x8 pixels of 17 grey levels (Alpaydin and Kaynak, 1998,
UCI).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.prepare.source import Row, Skipped, Source, png, split_of


def digits(*, test_fraction: float = 0.2) -> Source:
    """Return the digits as 8x8 RGB PNGs, with labels 0 to 9; the id's hash decides the split."""
    # slow to import; includes the data, so nothing is downloaded
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 0..16 to 0..255: white ink on black, as in the data set.
    images = np.rint(np.asarray(bunch.images, dtype=np.float64) * (255 / 16)).astype(np.uint8)
    classes = [int(label) for label in bunch.target]

    def rows() -> Iterator[Row | Skipped]:
        for number, (image, label) in enumerate(zip(images, classes, strict=True)):
            id = f"digit-{number:04d}"
            rgb = np.repeat(image[:, :, None], 3, axis=2)
            yield Row(
                id=id,
                image=png(rgb),
                path=f"{id}.png",
                label=label,
                split=split_of(id, test_fraction),
            )

    return Source(rows=rows(), total=len(classes), classes=tuple("0123456789"))
