"""The experiment: log-odds against softmax and sigmoid, and mixtures that meet the right rows."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from counterfactory.interventions.experiment import LIMIT, Answers, log_odds
from counterfactory.interventions.switches import Cells, draw_switches

INF = float("inf")


@pytest.mark.parametrize("classes", [2, 5])
def test_log_odds_are_the_softmaxs(classes: int) -> None:
    scores = torch.randn(40, classes, generator=torch.Generator().manual_seed(0)) * 3
    target = torch.arange(40) % classes
    p = np.exp(scores.double().numpy())
    p = p[np.arange(40), target] / p.sum(1)
    found = log_odds(scores, target)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(np.log(p / (1 - p)).tolist(), rel=1e-9, abs=1e-9)


def test_log_odds_of_a_sigmoid_head_are_its_logit() -> None:
    logit = torch.tensor([-3.0, 0.0, 0.25, 9.0])
    scores = torch.stack([torch.zeros(4), logit], 1)
    assert log_odds(scores, torch.ones(4, dtype=torch.int64)).tolist() == logit.tolist()
    assert log_odds(scores, torch.zeros(4, dtype=torch.int64)).tolist() == (-logit).tolist()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.0, 40.0], LIMIT),
        ([40.0, 0.0], -LIMIT),
        ([0.0, INF], LIMIT),
        ([-INF, 0.0], LIMIT),
        ([0.0, -INF], -LIMIT),
        ([INF, 0.0], -LIMIT),
        ([-INF, 2.0, -INF], LIMIT),
        ([-INF, 1.0, 0.0], 1.0),
        ([INF, INF], None),
        ([-INF, -INF], None),
        ([float("nan"), 0.0], None),
        ([0.0, float("nan")], None),
        ([0.0, 1.0, float("nan")], None),
    ],
)
def test_limits_of_log_odds(scores: list[float], expected: float | None) -> None:
    found = log_odds(torch.tensor([scores]), torch.tensor([1])).item()
    assert np.isnan(found) if expected is None else found == expected


class Sizes:
    """A classifier whose logit is the sum of the image; remembers the sizes of its batches."""

    classes = ("small", "large")

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        assert len(images), "an empty batch"
        self.sizes.append(len(images))
        total = images.sum((1, 2, 3)) / 40
        return torch.stack([torch.zeros_like(total), total], 1)


class Oracle:
    attributes: Sequence[str] = ("bright", "certain", "impossible")

    def __call__(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, torch.ones_like(mean), torch.zeros_like(mean)], 1)


def images(seed: int) -> Tensor:
    drawn = torch.randint(0, 256, (3, 3, 12, 10), generator=torch.Generator().manual_seed(seed))
    return drawn.float() / 255


def test_every_mixture_is_measured_for_its_own_row_and_target_whatever_the_batch() -> None:
    cells = Cells(images(0), images(1), grid=3)
    target = torch.tensor([0, 1, 1])
    on = draw_switches(torch.tensor([4, 5, 6]), 5, cells.count)
    classifier = Sizes()
    found = Answers(classifier, target, Oracle(), batch=4).each(cells, on)
    assert classifier.sizes == [4, 4, 4, 3]
    assert found.shape == (3, 5, 4)
    assert found.dtype == torch.float64
    for row in range(3):
        for mixture in range(5):
            image = cells.mixed(torch.tensor([row]), on[row, mixture : mixture + 1]).double()
            logit = image.sum().item() / 40 * (1 if target[row] else -1)
            mean = image.mean().item()
            told = [logit, np.log(mean / (1 - mean)), LIMIT, -LIMIT]
            assert found[row, mixture].tolist() == pytest.approx(told, rel=1e-4)
    alone = Answers(Sizes(), target).each(cells, on)
    assert alone.shape == (3, 5, 1)
    assert torch.allclose(alone[..., 0], found[..., 0], rtol=1e-5)


def test_no_mixture_is_no_call() -> None:
    cells = Cells(images(0), images(1))
    answers = Answers(Sizes(), torch.tensor([0, 1, 1]), Oracle())
    assert answers.each(cells, torch.zeros(3, 0, cells.count).bool()).shape == (3, 0, 4)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert answers(cells, nothing, torch.zeros(0, cells.count).bool()).shape == (0, 4)
