"""Counter_Vis: the exchange that brute force finds, no cell twice, the stop, and what is pasted and
told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.contract import ImageQueries, to_8bit
from counterfactory.methods.counter_vis import CounterVis, block, exchanged
from counterfactory.models.distractors import Distractors

CELLS = 9


class Net(nn.Module):
    """Maps of 3 x 3 cells, 4 px each, and a head that is no sum over them: cells are told apart by
    their place.
    """

    classes = ("a", "b", "c")

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(4)
        self.mix, self.out = (
            torch.randn(5, 3, generator=g),
            torch.randn(3, 5 * CELLS, generator=g) * 0.7,
        )
        self.bias = torch.tensor([0.0, bias, bias])

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        assert layer == "last"
        seen = nn.functional.avg_pool2d(images * 4 - 2, 4)
        return torch.einsum("dc,bchw->bdhw", self.mix, seen).tanh(), self.head

    def head(self, maps: Tensor) -> Tensor:
        return (maps.flatten(1)[:, None] * self.out).sum(2).sin() * 3 + self.bias

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.split(images, "last")[0])


def bank(net: Net, seed: int = 2) -> Distractors:
    images = torch.randint(0, 256, (30, 3, 12, 12), generator=torch.Generator().manual_seed(seed))
    assert net(images / 255).argmax(1).unique().tolist() == [0, 1, 2]
    return Distractors(images.to(torch.uint8), torch.arange(30) * 10)


def asked(net: Net, rows: int = 6) -> ImageQueries:
    images = to_8bit(torch.rand(rows, 3, 12, 12, generator=torch.Generator().manual_seed(9)))
    source = net(images).argmax(1)
    return ImageQueries(
        images=images, source=source, target=(source + 1) % 3, seed=torch.arange(rows)
    )


def brute(net: Net, cells: Tensor, spare: Tensor, target: int, most: int) -> list[list[int]]:
    """The greedy search, one exchange and one call of the head at a time."""
    edits: list[list[int]] = []
    while len(edits) < most:
        scored = {}
        for i, j in itertools.product(range(CELLS), range(CELLS)):
            if i not in [e[0] for e in edits] and j not in [e[1] for e in edits]:
                scored[i, j] = float(
                    net.head(exchanged(cells, spare, i, j)[None]).log_softmax(1)[0, target]
                )
        i, j = max(scored, key=lambda pair: scored[pair])
        cells = exchanged(cells, spare, i, j)
        edits.append([i, j])
        if int(net.head(cells[None]).argmax()) == target:
            break
    return edits


def lists(told: Any) -> list[list[int]]:
    return [list(pair) for pair in told["exchanged"]]


@pytest.mark.parametrize("bias", [0.0, -4.0])  # with the second, the classes b and c are far off
def test_the_edits_are_those_of_brute_force(bias: float) -> None:
    net = Net(bias)
    queries, found = asked(net), bank(Net())
    answers = CounterVis(max_edits=5)(queries, classifier=net, distractors=found)
    others, numbers = found(queries.images, queries.target, queries.seed, net)
    maps, spare = net.split(queries.images, "last")[0], net.split(others, "last")[0]
    assert answers.edits is not None
    for row, told in enumerate(answers.edits):
        if numbers[row] < 0:
            assert told is None
            continue
        wanted = brute(net, maps[row], spare[row], int(queries.target[row]), 5)
        assert lists(told) == wanted
        assert answers.steps[row] == len(wanted)
        assert told["cells"] == [3, 3]  # type: ignore[index]
        assert told["distractor"] == numbers[row]  # type: ignore[index]
        looked = sum((CELLS - n) ** 2 for n in range(len(wanted)))
        assert answers.forward[row] == 2 + looked + (1 if answers.flipped[row] else 2)
    assert not answers.backward.any()


def test_no_cell_is_used_twice_and_all_of_them_may_be() -> None:
    net = Net()
    queries, found = asked(net), bank(net)

    class Stubborn(Net):
        def head(self, maps: Tensor) -> Tensor:  # leans to the target, and never takes it
            scores = super().head(maps)
            return torch.cat([scores[:, :1] + 100, scores[:, 1:]], 1)

    queries = replace(queries, source=queries.source * 0, target=queries.target * 0 + 1)
    found._seen[stubborn := Stubborn()] = found.classes_by(net)
    answers = CounterVis(max_edits=100)(queries, classifier=stubborn, distractors=found)
    for told in answers.edits or []:
        pairs = lists(told)
        assert sorted(i for i, _ in pairs) == sorted(j for _, j in pairs) == list(range(CELLS))
        assert told is not None
        assert not told["features_turned"]
    assert answers.reasons == ["the edits did not turn the decision"] * 6


def test_the_answer_is_the_query_with_the_cells_pixels_pasted() -> None:
    net = Net()
    queries, found = asked(net), bank(net)
    answers = CounterVis()(queries, classifier=net, distractors=found)
    others, _ = found(queries.images, queries.target, queries.seed, net)
    assert answers.edits is not None
    assert answers.mask is not None
    for row, told in enumerate(answers.edits):
        image, mask = queries.images[row].clone(), torch.zeros(12, 12)
        for i, j in lists(told):
            top, left, above, beside = i // 3 * 4, i % 3 * 4, j // 3 * 4, j % 3 * 4
            image[:, top : top + 4, left : left + 4] = others[
                row, :, above : above + 4, beside : beside + 4
            ]
            mask[top : top + 4, left : left + 4] = 1
        torch.testing.assert_close(answers.counterfactual[row], image)
        assert torch.equal(answers.mask[row, 0], mask)
    # A cell's features are made of its own pixels here: the pasted image has the edited maps, and
    # turns with them.
    assert answers.flipped.tolist() == [
        told is not None and told["features_turned"] for told in answers.edits
    ]


def test_a_flip_of_the_features_alone_is_told_as_that_or_goes_on() -> None:
    class Around(Net):
        """Its cells see the image's brightness, too, which no pasted cell brings along."""

        def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            maps, head = super().split(images, layer)
            return maps + 2 * torch.sin(40 * images.mean((1, 2, 3)))[:, None, None, None], head

    net = Around()
    queries, found = asked(net, 12), bank(net)
    answers = CounterVis()(queries, classifier=net, distractors=found)
    turned = torch.tensor(
        [told is not None and told["features_turned"] for told in answers.edits or []]
    )
    lost = turned & ~answers.flipped
    assert lost.any()
    for row in lost.nonzero()[:, 0].tolist():
        assert (
            answers.reasons[row]
            == "the decision turned on the features, and not on the image pasted together"
        )
    further = CounterVis(until="image")(queries, classifier=net, distractors=found)
    assert int(further.flipped.sum()) > int(answers.flipped.sum())
    assert bool((further.steps >= answers.steps).all())


def test_cells_of_the_image_itself_need_no_layer() -> None:
    net = Net()
    queries, found = asked(net), bank(net)

    class BlackBox(nn.Module):
        classes = net.classes

        def forward(self, images: Tensor) -> Tensor:
            return net(images)

    inside = CounterVis()(queries, classifier=net, distractors=found)
    outside = CounterVis(layer=None, cells=3)(queries, classifier=BlackBox(), distractors=found)  # type: ignore[arg-type]
    assert [lists(told) for told in inside.edits or []] == [
        lists(told) for told in outside.edits or []
    ]
    assert torch.equal(inside.counterfactual, outside.counterfactual)
    with pytest.raises(
        ValueError, match="expected images that 5 x 5 square cells fill, got 12 x 12 px: set cells"
    ):
        CounterVis(layer=None, cells=5)(queries, classifier=net, distractors=found)


def test_the_screen_keeps_the_best_pair_of_a_head_that_is_linear_and_counts_less() -> None:
    class Straight(Net):
        def head(self, maps: Tensor) -> Tensor:
            return (maps.flatten(1)[:, None] * self.out[:2]).sum(2)

    net = Straight()
    queries = asked(net)
    queries = replace(queries, target=1 - queries.source)
    images = torch.randint(0, 256, (30, 3, 12, 12), generator=torch.Generator().manual_seed(2)).to(
        torch.uint8
    )
    found = Distractors(images, torch.arange(30))
    every, few = (
        CounterVis(screen=screen)(queries, classifier=net, distractors=found)
        for screen in (None, 3)
    )
    assert every.edits == few.edits
    assert bool((few.forward < every.forward).all())
    assert torch.equal(few.backward, few.steps)


def test_a_row_without_a_distractor_says_so() -> None:
    net = Net()
    queries, found = asked(net), bank(net)
    classes = found.classes_by(net)
    keep = classes != queries.target[0]
    fewer = Distractors(found.images[keep], found.numbers[keep])
    answers = CounterVis()(queries, classifier=net, distractors=fewer)
    for row in range(len(queries)):
        without = queries.target[row] == queries.target[0]
        assert (
            answers.reasons[row]
            == "no distractor: the classifier takes none of them for the target"
        ) == without
        assert bool((answers.counterfactual[row] == queries.images[row]).all()) == without


def test_blocks_tile_an_image_that_the_cells_do_not_divide() -> None:
    seen = torch.zeros(10, 11)
    for cell in range(12):
        seen[block(cell, (3, 4), (10, 11))] += 1
    assert bool((seen == 1).all())
    net = Net()

    class Resized(Net):
        def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return net.split(nn.functional.interpolate(images, (12, 12)), layer)

    images = torch.randint(0, 256, (30, 3, 10, 11), generator=torch.Generator().manual_seed(3)).to(
        torch.uint8
    )
    sized = Resized()
    source = sized(images[:4] / 255).argmax(1)
    queries = ImageQueries(
        images=images[:4] / 255, source=source, target=(source + 1) % 3, seed=torch.arange(4)
    )
    answers = CounterVis()(
        queries, classifier=sized, distractors=Distractors(images, torch.arange(30))
    )
    assert answers.counterfactual.shape == (4, 3, 10, 11)
    assert bool((answers.counterfactual != queries.images).flatten(1).any(1).all())
