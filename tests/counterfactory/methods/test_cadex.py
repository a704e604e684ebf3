"""CADEX: which values move, how far, and when it stops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from counterfactory.methods.cadex import CADEX, strongest
from counterfactory.methods.contract import ImageQueries, to_8bit


class Weighted(nn.Module):
    """Two classes by a weighted sum of the image's values, every weight of another size."""

    classes = ("no", "yes")

    def __init__(self) -> None:
        super().__init__()
        size = torch.linspace(0.1, 4.0, 3 * 8 * 8)[
            torch.randperm(192, generator=torch.Generator().manual_seed(1))
        ]
        sign = torch.randn(192, generator=torch.Generator().manual_seed(2)).sign()
        self.weight = (size * sign).view(3, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        logit = ((images - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([-logit, logit], 1)


def turned_away(net: Weighted, rows: int = 3) -> ImageQueries:
    """Noise that is drawn away from class 1, more and more by row."""
    noise = torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 0.2 + 0.4
    images = to_8bit(noise - torch.arange(1, rows + 1).view(-1, 1, 1, 1) * net.weight.sign() * 0.02)
    zeros = torch.zeros(rows, dtype=torch.int64)
    assert not net(images).argmax(1).any()
    return ImageQueries(images=images, source=zeros, target=zeros + 1, seed=zeros)


def test_exactly_the_n_values_of_largest_gradient_move() -> None:
    net = Weighted()
    queries = turned_away(net)
    for n in (12, 40):
        answers = CADEX(n=n, lr=0.01)(queries, classifier=net)
        assert bool(answers.flipped.all())
        wanted = net.weight.abs() >= net.weight.abs().flatten().sort(descending=True).values[n - 1]
        assert int(wanted.sum()) == n
        change = answers.counterfactual - queries.images
        for row in range(3):
            assert torch.equal(change[row] != 0, wanted)
            assert torch.equal(change[row].sign()[wanted], net.weight.sign()[wanted])
        assert answers.steps.tolist() == sorted(answers.steps.tolist())


def test_it_stops_at_the_first_iterate_that_flips_or_is_as_sure_as_asked(
    pick: Callable[[ImageQueries, list[int]], ImageQueries],
) -> None:
    net = Weighted()
    queries = turned_away(net)
    for threshold, least in ((0.0, 0.5), (0.95, 0.95)):
        answers = CADEX(n=40, threshold=threshold)(queries, classifier=net)
        assert len(set(answers.steps.tolist())) == 3
        for row, steps in enumerate(answers.steps.tolist()):
            before = CADEX(n=40, threshold=threshold, max_steps=steps - 1)(
                pick(queries, [row]), classifier=net
            )
            assert float(net(before.counterfactual).softmax(1)[0, 1]) <= least
            assert float(net(answers.counterfactual[row : row + 1]).softmax(1)[0, 1]) > least
            assert before.reasons == ["not converged" if threshold == 0 else None]
        assert torch.equal(answers.backward, answers.steps)


def test_the_first_step_of_adam_is_the_learning_rate_and_the_range_holds() -> None:
    net = Weighted()
    queries = turned_away(net, 1)
    answers = CADEX(n=5, lr=10 / 255, max_steps=1)(queries, classifier=net)
    moved = (answers.counterfactual - queries.images).abs().flatten()
    assert sorted((moved * 255).round().int().tolist())[-6:] == [0, 10, 10, 10, 10, 10]
    answers = CADEX(n=5, lr=0.05, threshold=1.0, max_steps=60)(queries, classifier=net)
    assert float(answers.counterfactual.min()) >= 0
    assert float(answers.counterfactual.max()) <= 1
    assert answers.steps.tolist() == [60]


def test_values_at_the_end_of_the_range_are_not_picked_for_going_further() -> None:
    grad = torch.tensor([5.0, -4.0, 3.0, -2.0, 1.0, 0.0]).view(1, 1, 2, 3)
    x = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5]).view(1, 1, 2, 3)
    assert strongest(grad, x, 2).flatten().tolist() == [0, 0, 1, 1, 0, 0]
    assert strongest(grad, x, 100).flatten().tolist() == [0, 0, 1, 1, 1, 0]
