"""Cosines against NumPy."""

import numpy as np
import pytest
import torch

from counterfactory.metrics.similarity import cosine, verified


def test_against_numpy_and_by_hand() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 40)), rng.normal(size=(7, 40))
    expected = [
        np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)
    ]
    assert cosine(torch.tensor(a), torch.tensor(b)).tolist() == pytest.approx(expected, abs=1e-12)
    a32 = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    got = cosine(a32, torch.tensor([[4.0, 3.0], [-2.0, 0.0], [1.0, 0.0]]))
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx([0.96, -1.0, 0.0])
    assert verified(got).tolist() == [1.0, 0.0, 0.0]
    assert verified(torch.tensor([0.5, 0.5001])).tolist() == [0.0, 1.0]  # above 0.5, not at it


def test_no_rows_and_wrong_shapes() -> None:
    assert cosine(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)
    with pytest.raises(
        ValueError, match=r"expected features of one shape \(B,D\), got \(2, 3\) and \(2, 4\)"
    ):
        cosine(torch.zeros(2, 3), torch.zeros(2, 4))
