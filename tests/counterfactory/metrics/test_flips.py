"""Flips and agreement, row by row."""

import math

import pytest
import torch

from counterfactory.metrics.flips import agreement, flips


def test_flips_against_a_loop() -> None:
    scores = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(40) % 4
    flipped, p = flips(scores, target)
    for i, row in enumerate(scores.double().tolist()):
        total = sum(math.exp(s) for s in row)
        assert p[i].item() == pytest.approx(math.exp(row[int(target[i])]) / total)
        assert bool(flipped[i]) == (max(range(4), key=row.__getitem__) == int(target[i]))
    assert 0 < int(flipped.sum()) < 40


def test_agreement() -> None:
    scores = torch.tensor([[0.0, 2.0], [1.0, -1.0], [0.0, 0.1]])
    assert agreement(scores, torch.tensor([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]
