"""Cores as answers: the cells that decide are kept, and nothing else of the change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory import explain
from counterfactory.interventions.answers import GROUPS, KEPT, ROUNDS, with_cores
from counterfactory.interventions.experiment import log_odds
from counterfactory.interventions.switches import Cells
from counterfactory.methods import PixelPGD
from counterfactory.methods.contract import ImageAnswers, ImageQueries, to_8bit

SIDE, ROWS = 32, 6  # 8 x 8 cells of 4 px
BOX = (slice(8, 16), slice(20, 24))  # two cells: (2,5) and (3,5)


class Reader(nn.Module):
    """Class 1 where a box is bright; the rest of the image counts for nothing."""

    classes = ("dark", "bright")

    def __init__(self, scale: float = 30.0, classes: int = 2) -> None:
        super().__init__()
        self.scale, self.count, self.asked = scale, classes, 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        z = self.scale * (images[:, :, BOX[0], BOX[1]].double().mean((1, 2, 3)) - 0.5)
        return torch.stack([-z / 2, z / 2, *[z * 0 + 2.0] * (self.count - 2)], 1).float()


def pairs(rows: int = ROWS) -> tuple[ImageQueries, ImageAnswers]:
    """Queries with a dark box, and answers in which the whole picture is brighter."""
    draw = torch.Generator().manual_seed(1)
    x = to_8bit(0.1 + 0.2 * torch.rand(rows, 3, SIDE, SIDE, generator=draw))
    after = to_8bit(x + 0.5 + 0.1 * torch.rand(x.shape, generator=draw))
    queries = ImageQueries(
        images=x,
        source=torch.zeros(rows, dtype=torch.int64),
        target=torch.ones(rows, dtype=torch.int64),
        seed=torch.arange(rows) + 40,
    )
    return queries, answers(after, Reader()(after).argmax(1) == 1)


def answers(images: Tensor, flipped: Tensor) -> ImageAnswers:
    n = len(images)
    return ImageAnswers(
        counterfactual=images,
        flipped=flipped,
        steps=torch.ones(n, dtype=torch.int64),
        forward=torch.full((n,), 3),
        backward=torch.full((n,), 2),
        reasons=[None if done else "stuck" for done in flipped.tolist()],
        latent_before=torch.zeros(n, 4),
        latent_after=torch.ones(n, 4),
        edits=[{"moved": 1}] * n,
    )


def test_the_core_is_the_place_that_decides() -> None:
    queries, full = pairs()
    assert full.flipped.all()
    found = with_cores(full, queries, Reader())
    change = (found.counterfactual - queries.images).abs()
    whole = (full.counterfactual - queries.images).abs()
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[BOX] = True
    assert bool((change[..., inside].sum(1) > 0.6 * whole[..., inside].sum(1)).all())
    assert bool((change.sum((1, 2, 3)) < 0.5 * whole.sum((1, 2, 3))).all())
    verdict = Reader()(found.counterfactual)
    assert torch.equal(verdict.argmax(1), queries.target)
    odds = [
        log_odds(Reader()(i), queries.target) for i in (found.counterfactual, full.counterfactual)
    ]
    assert bool((odds[0] >= KEPT * odds[1] - 1e-6).all())
    assert torch.equal(found.counterfactual, to_8bit(found.counterfactual))


def test_the_mask_is_where_the_core_may_differ() -> None:
    queries, full = pairs()
    given = torch.ones(ROWS, 1, SIDE, SIDE)
    given[..., :10, :] = 0  # what the method itself was allowed to change
    full = replace(
        full, counterfactual=torch.where(given > 0, full.counterfactual, queries.images), mask=given
    )
    full = replace(full, flipped=Reader()(full.counterfactual).argmax(1) == 1)
    found = with_cores(full, queries, Reader())
    assert found.mask is not None
    assert found.mask.shape == given.shape
    assert float(found.mask[..., :10, :].max()) == 0
    assert float(found.mask.min()) >= 0
    assert float(found.mask.max()) <= 1
    moved = (found.counterfactual != queries.images).any(1, keepdim=True)
    assert not bool((moved & (found.mask == 0)).any())


def test_what_describes_the_full_answer_is_dropped_and_its_cost_added() -> None:
    queries, full = pairs()
    reader = Reader()
    found = with_cores(full, queries, reader)
    assert (found.latent_after, found.edits) == (None, None)
    assert found.latent_before is full.latent_before
    assert int((found.forward - full.forward).sum()) == reader.asked
    assert torch.equal(found.backward, full.backward)
    # the whole change, then in each round the groups and at most 4 sizes of 12
    assert int((found.forward - full.forward).max()) <= 1 + (GROUPS + 4) * ROUNDS


def test_a_row_that_did_not_flip_keeps_its_answer_and_costs_nothing() -> None:
    queries, full = pairs()
    full.flipped[2] = False
    found = with_cores(full, queries, Reader())
    assert torch.equal(found.counterfactual[2], full.counterfactual[2])
    assert found.forward[2] == full.forward[2]
    assert found.mask is not None
    assert bool((found.mask[2] == 1).all())
    assert not torch.equal(found.counterfactual[1], full.counterfactual[1])


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_row_s_core_is_the_same_beside_others(batch: int) -> None:
    queries, full = pairs()
    together = with_cores(full, queries, Reader())
    for row in range(ROWS):
        at = torch.tensor([row])
        alone = with_cores(
            answers(full.counterfactual[at], full.flipped[at]),
            queries.chosen(at),
            Reader(),
            batch=batch,
        )
        assert torch.equal(alone.counterfactual[0], together.counterfactual[row])
        assert alone.forward[0] == together.forward[row]


def test_each_of_several_answers_to_a_query_gets_its_own_core() -> None:
    queries, full = pairs(2)
    other = full.counterfactual.clone()
    other[:, :, 24:] = queries.images[:, :, 24:]  # a smaller change, with the box
    both = torch.stack([full.counterfactual, other], 1).flatten(0, 1)
    found = with_cores(answers(both, torch.ones(4, dtype=torch.bool)), queries, Reader())
    assert found.counterfactual.shape == both.shape
    x = queries.repeated(2).images
    assert bool(((found.counterfactual - x).abs() <= (both - x).abs() + 1.01 / 255).all())
    assert torch.equal(Reader()(found.counterfactual).argmax(1), torch.ones(4, dtype=torch.int64))


class Labels(Reader):
    """A black box that returns its decision alone."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(super().forward(images).argmax(1), 2).float().log()


def test_labels_alone_are_enough() -> None:
    queries, full = pairs()
    found = with_cores(full, queries, Labels())
    assert torch.equal(Reader()(found.counterfactual).argmax(1), queries.target)
    size = [(i - queries.images).abs().mean() for i in (found.counterfactual, full.counterfactual)]
    assert size[0] < 0.5 * size[1]


def test_of_three_classes_a_flip_below_an_even_chance_has_a_core() -> None:
    queries, full = pairs()
    reader = Reader(scale=22.0, classes=6)
    scores = reader(full.counterfactual)
    assert torch.equal(scores.argmax(1), queries.target)
    assert bool((scores.softmax(1)[:, 1] < 0.5).all())
    found = with_cores(full, queries, reader)
    assert torch.equal(reader(found.counterfactual).argmax(1), queries.target)
    assert bool(((found.counterfactual != full.counterfactual).flatten(1).any(1)).all())


def test_mixtures_without_finite_scores_are_no_cores() -> None:
    class Sick(Reader):
        def forward(self, images: Tensor) -> Tensor:
            scores = super().forward(images)
            few = (images.mean((1, 2, 3)) > 0.25) & (images.mean((1, 2, 3)) < 0.5)
            return torch.where(few[:, None], torch.nan, scores)

    queries, full = pairs()
    found = with_cores(full, queries, Sick())
    assert bool(Sick()(found.counterfactual).isfinite().all())
    assert bool((found.counterfactual.mean((1, 2, 3)) >= 0.5).all())


def test_no_rows_are_no_answers() -> None:
    queries, full = pairs()
    full.flipped[:] = False
    found = with_cores(full, queries, Reader())
    assert torch.equal(found.counterfactual, full.counterfactual)


def test_explain_answers_with_cores() -> None:
    queries, _ = pairs()
    given: dict[str, Any] = {"classifier": Reader(), "method": PixelPGD(eps=128.0, step=8.0)}
    full, found = (explain(queries.images, core=core, **given) for core in (False, True))
    assert full.flipped.all()
    assert found.flipped.all()
    alone = explain(queries.images, core=True, batch=1, **given)
    assert torch.equal(alone.counterfactual, found.counterfactual)
    sizes = [(one.counterfactual - queries.images).abs().sum() for one in (found, full)]
    assert sizes[0] <= sizes[1]
    assert Cells(queries.images, queries.images).count == 64
