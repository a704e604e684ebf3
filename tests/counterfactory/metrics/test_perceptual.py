"""Perceptual distances of pairs and of the answers to one query, with a distance that can be worked
out.
"""

import itertools

import pytest
import torch
from torch import Tensor

from counterfactory.metrics.perceptual import distances, diversity


def mean_change(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean((1, 2, 3))


def test_each_pair_has_its_own_whatever_the_batch() -> None:
    images = torch.rand(11, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    other = images.flip(0)
    expected = [float((images[i] - other[i]).abs().mean()) for i in range(11)]
    for batch in (1, 4, 64):
        assert distances(mean_change, images, other, batch).tolist() == pytest.approx(
            expected, abs=1e-7
        )
    assert distances(mean_change, images, images).tolist() == [0.0] * 11


def test_diversity_is_the_mean_over_all_pairs_of_answers() -> None:
    answers = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    pairs = [float((a - b).abs().mean()) for a, b in itertools.combinations(answers, 2)]
    assert len(pairs) == 6
    flipped = torch.tensor([True, False, True, True])
    of_flipped = (pairs[1] + pairs[2] + pairs[5]) / 3  # (0, 2), (0, 3), (2, 3)
    found = diversity(mean_change, answers, flipped, batch=4)
    assert found == pytest.approx((sum(pairs) / 6, of_flipped), abs=1e-7)
    assert diversity(mean_change, answers[:2], flipped[:2])[1] is None  # one of them flipped
    assert diversity(mean_change, answers[:1], flipped[:1]) == (None, None)
    assert diversity(mean_change, answers[:1].repeat(4, 1, 1, 1), flipped) == (0, 0)


def test_no_rows_and_networks_that_give_something_else() -> None:
    assert distances(mean_change, torch.zeros(0, 3, 5, 5), torch.zeros(0, 3, 5, 5)).shape == (0,)
    one = torch.zeros(2, 3, 5, 5)
    with pytest.raises(ValueError, match=r"expected one distance per pair, got \[\(2, 3, 5, 5\)\]"):
        distances(lambda a, b: a - b, one, one)
    with pytest.raises(ValueError, match="expected images of one shape"):
        distances(mean_change, one, one[:1])
