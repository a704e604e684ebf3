"""The pixel control: the sign step in closed form, its bounds, and its stop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterfactory.methods.contract import ImageQueries
from counterfactory.methods.pixel_pgd import PixelPGD


class Linear(nn.Module):
    """Two classes by the overlap with a fixed pattern of +1 and -1."""

    classes = ("no", "yes")

    def __init__(self) -> None:
        super().__init__()
        self.pattern = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2)).sign()

    def forward(self, images: Tensor) -> Tensor:
        logit = ((images - 0.5) * self.pattern).flatten(1).sum(1)
        return torch.stack([-logit, logit], 1)


def turned_away(net: Linear, rows: int = 4) -> ImageQueries:
    """Noise that is drawn away from class 1, more and more by row, with some pixels at the ends of
    the range.
    """
    noise = torch.randint(
        60, 196, (rows, 3, 8, 8), generator=torch.Generator().manual_seed(3)
    ).float()
    images = noise - torch.arange(1, rows + 1).view(-1, 1, 1, 1) * net.pattern * 4
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 0.0, 255.0
    zeros = torch.zeros(rows, dtype=torch.int64)
    queries = ImageQueries(
        images=images.round().clamp(0, 255) / 255, source=zeros, target=zeros + 1, seed=zeros
    )
    assert not net(queries.images).argmax(1).any()
    return queries


def test_steps_are_signs_inside_the_ball_until_the_threshold() -> None:
    net = Linear()
    queries = turned_away(net)
    settings: dict[str, Any] = {"step": 2.0, "eps": 200.0, "max_steps": 50}
    answers = PixelPGD(**settings)(queries, classifier=net)
    assert bool(answers.flipped.all())
    assert answers.reasons == [None] * 4
    assert answers.steps.tolist() == sorted(answers.steps.tolist())
    assert len(set(answers.steps.tolist())) > 1
    expected = (queries.images + answers.steps.view(-1, 1, 1, 1) * 2 / 255 * net.pattern).clamp(
        0, 1
    )
    torch.testing.assert_close(answers.counterfactual, expected, atol=1e-6, rtol=0)
    p = net(answers.counterfactual).softmax(1)[:, 1]
    before = (queries.images + (answers.steps.view(-1, 1, 1, 1) - 1) * 2 / 255 * net.pattern).clamp(
        0, 1
    )
    assert bool((p > 0.75).all())
    assert bool((net(before).softmax(1)[:, 1] <= 0.75).all())
    # classify before each step and after the last, look at the stored image that passes, and the
    # verdict
    assert torch.equal(answers.forward, answers.steps + 3)
    assert torch.equal(answers.backward, answers.steps)


def test_the_ball_bounds_the_change_and_a_row_that_cannot_says_so() -> None:
    net = Linear()
    queries = turned_away(net)
    answers = PixelPGD(step=2.0, eps=3.0, max_steps=9)(queries, classifier=net)
    change = (answers.counterfactual - queries.images).abs()
    assert round(float(change.max()) * 255) == 3
    assert not bool(answers.flipped[-1])
    assert answers.reasons[-1] == "not converged"
    assert answers.steps[-1] == 9
