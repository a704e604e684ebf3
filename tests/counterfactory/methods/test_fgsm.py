"""FGSM: its one step in closed form, and a row that one step does not turn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterfactory.methods.contract import ImageQueries
from counterfactory.methods.fgsm import FGSM


class Linear(nn.Module):
    """Two classes by the overlap with a fixed pattern; n values of it are +1 or -1, and the others
    0.
    """

    classes = ("no", "yes")

    def __init__(self) -> None:
        super().__init__()
        self.pattern = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2)).sign()
        self.pattern[:, 4:] = 0

    def forward(self, images: Tensor) -> Tensor:
        logit = ((images - 0.5) * self.pattern).flatten(1).sum(1)
        return torch.stack([-logit, logit], 1)


def away_by(net: Linear, levels: list[float], source: int = 0) -> ImageQueries:
    """Grey images, each so many levels away from the decision in every value that counts."""
    sign = 1 if source else -1
    images = 128 / 255 + sign * torch.tensor(levels).view(-1, 1, 1, 1) / 255 * net.pattern
    classes = torch.full((len(levels),), source)
    assert torch.equal(net(images).argmax(1), classes)
    return ImageQueries(images=images, source=classes, target=1 - classes, seed=classes)


def test_a_linear_classifier_turns_where_the_step_is_longer_than_the_way() -> None:
    net = Linear()
    for source in (0, 1):
        queries = away_by(net, [2.0, 6.0, 7.0, 9.0, 30.0], source)
        answers = FGSM(eps=8.0)(queries, classifier=net)
        assert answers.flipped.tolist() == [True, True, True, False, False]
        step = 8 / 255 * net.pattern * (-1 if source else 1)
        torch.testing.assert_close(answers.counterfactual, queries.images + step, atol=1e-6, rtol=0)
        assert answers.reasons == [None] * 3 + ["not flipped by one step of 8/255"] * 2
        assert answers.steps.tolist() == answers.backward.tolist() == [1] * 5
        # the gradient's look, the verdict, and, where it did not flip, why
        assert answers.forward.tolist() == [2, 2, 2, 3, 3]


def test_it_stays_in_the_range_and_leaves_rows_alone_that_need_no_step() -> None:
    net = Linear()
    queries = away_by(net, [100.0, 6.0])
    queries.images[0, 0, 0, 0], queries.target[1] = (net.pattern[0, 0, 0] > 0).float(), 0
    answers = FGSM(eps=20.0)(queries, classifier=net)
    assert float(answers.counterfactual.min()) >= 0
    assert float(answers.counterfactual.max()) <= 1
    assert answers.counterfactual[0, 0, 0, 0] == queries.images[0, 0, 0, 0]
    torch.testing.assert_close(answers.counterfactual[1], queries.images[1], atol=1e-6, rtol=0)
    assert answers.steps.tolist() == [1, 0]
    assert answers.flipped.tolist() == [False, True]
