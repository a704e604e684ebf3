"""Distractors: of the target class by the classifier's view, the row's own by its seed, or the
nearest.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from counterfactory.models.distractors import Distractors


class Brightness(nn.Module):
    """Three classes by brightness; NaN for white."""

    classes = ("dark", "middle", "light")
    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        level = images.flatten(1).mean(1, keepdim=True)
        return -(level - torch.tensor([0.2, 0.5, 0.8])).abs() * torch.where(
            level < 0.99, 1.0, torch.nan
        )


LEVELS = [40, 50, 60, 120, 200, 255]


def bank() -> Distractors:
    images = torch.tensor(LEVELS, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    return Distractors(images, torch.arange(6) * 7)


def asked(*levels: float) -> Tensor:
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()


def test_a_distractor_is_of_the_target_class_and_follows_from_the_rows_seed() -> None:
    found, classifier = bank(), Brightness()
    seed = torch.arange(60)
    images, target = asked(*[128.0] * 60), torch.zeros(60, dtype=torch.int64)
    chosen, numbers = found(images, target, seed, classifier)
    assert sorted(set(numbers.tolist())) == [0, 7, 14]
    assert torch.equal(chosen[:, 0, 0, 0], torch.tensor(LEVELS)[numbers // 7] / 255)
    order = seed.flip(0)
    assert torch.equal(found(images, target, order, classifier)[1], numbers.flip(0))
    assert torch.equal(found(images[5:6], target[5:6], seed[5:6], classifier)[1], numbers[5:6])
    assert classifier.calls == 1  # the bank is looked at once


def test_the_nearest_is_nearest_and_a_class_without_images_gives_none() -> None:
    found = bank()
    target, seed = torch.tensor([0, 0, 1, 2]), torch.zeros(4, dtype=torch.int64)
    chosen, numbers = found(asked(90, 10, 250, 20), target, seed, Brightness(), "nearest")
    # white is nobody's: the classifier gives it no numbers
    assert numbers.tolist() == [14, 0, 21, 28]
    few = Distractors(found.images[:3], found.numbers[:3])
    chosen, numbers = few(asked(90, 10), torch.tensor([1, 0]), seed[:2], Brightness())
    assert numbers[0] == -1
    assert torch.equal(chosen[0], asked(90)[0])
    assert numbers[1] >= 0


def test_sizes_must_fit() -> None:
    with pytest.raises(
        ValueError, match=r"expected queries of the distractors' shape \(3, 4, 4\), got \(3, 8, 8\)"
    ):
        bank()(torch.zeros(1, 3, 8, 8), torch.zeros(1).long(), torch.zeros(1).long(), Brightness())
