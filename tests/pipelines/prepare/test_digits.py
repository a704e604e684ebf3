"""The digits: real, all there, grey, and split the same way each time."""

import numpy as np
from sklearn.datasets import load_digits

from pipelines.prepare.digits import digits
from pipelines.prepare.source import Row
from storage.codec import decode


def rows(**settings: float) -> list[Row]:
    return [row for row in digits(**settings).rows if isinstance(row, Row)]


def test_pixels_and_labels_are_scikit_learns() -> None:
    source, bunch = digits(), load_digits()
    got = [row for row in source.rows if isinstance(row, Row)]
    assert len(got) == source.total == 1797
    assert [row.label for row in got] == bunch.target.tolist()
    assert source.classes == tuple("0123456789")
    for row, truth in zip(got[::100], bunch.images[::100], strict=True):
        image = decode(row.image, size=8, crop=None, max_pixels=64)
        assert np.array_equal(image[:, :, 0], np.rint(truth * 255 / 16).astype(np.uint8))
        assert np.array_equal(image[:, :, 0], image[:, :, 2])


def test_a_row_stays_in_its_split_when_the_share_grows() -> None:
    small, large = (
        {row.id for row in rows(test_fraction=share) if row.split == "test"} for share in (0.1, 0.3)
    )
    assert small < large
    assert 0.06 < len(small) / 1797 < 0.14
    assert len({row.id for row in rows()}) == 1797
