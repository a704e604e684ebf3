"""Pixel distances against scikit-image and by hand."""

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error

from counterfactory.metrics.pixels import pixel_distances


def test_against_scikit_image_and_numpy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, 5, 3, 16, 16), dtype=np.uint8)
    y[:, :, :8] = x[:, :, :8]
    got = pixel_distances(torch.tensor(x) / 255, torch.tensor(y) / 255)
    for i in range(5):
        a, b = x[i].astype(float) / 255, y[i].astype(float) / 255
        assert got["l1"][i].item() == pytest.approx(np.abs(a - b).mean())
        assert got["l2"][i].item() == pytest.approx(np.sqrt(mean_squared_error(a, b)))
        assert got["linf"][i].item() == pytest.approx(np.abs(a - b).max())
        moved = [
            (np.abs(x[i, :, r, c].astype(int) - y[i, :, r, c]) > 1).any()
            for r in range(16)
            for c in range(16)
        ]
        assert got["sparsity"][i].item() == pytest.approx(np.mean(moved))


@pytest.mark.parametrize("level", [0, 1, 77, 254])
def test_a_change_of_one_level_is_not_a_move(level: int) -> None:
    x = torch.full((1, 3, 4, 4), level / 255)
    y = x.clone()
    y[0, 1, 0, 0] = (level + 1) / 255
    assert pixel_distances(x, y)["sparsity"].item() == 0
    y[0, 2, 3, 3] = (level + 2) / 255 if level < 254 else (level - 2) / 255
    assert pixel_distances(x, y)["sparsity"].item() == 1 / 16


def test_no_change_and_full_change() -> None:
    x = torch.zeros(2, 3, 4, 4)
    assert all(v.tolist() == [0.0, 0.0] for v in pixel_distances(x, x).values())
    assert all(v.tolist() == [1.0, 1.0] for v in pixel_distances(x, x + 1).values())
