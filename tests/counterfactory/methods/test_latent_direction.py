"""The search without gradients, on a latent space whose decision is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.contract import ImageQueries
from counterfactory.methods.latent_direction import LatentDirection

SIZE = 8
TRUE_EDGE = 2.0  # standard deviations along the way at which p(target) is a half


class Grey:
    """An autoencoder of four latents; the first one is the brightness of the left half, the second
    one of the right half.
    """

    def encode(self, images: Tensor) -> Tensor:
        halves = [part.mean((1, 2, 3)) for part in images.split(SIZE // 2, 3)]
        return torch.stack([*halves, *[torch.zeros(len(images))] * 2], 1)

    def decode(self, latents: Tensor) -> Tensor:
        halves = [latents[:, at, None, None, None].expand(-1, 3, SIZE, SIZE // 2) for at in (0, 1)]
        return torch.cat(halves, 3).clamp(0, 1)


class Ways:
    """A way along one latent, 0.1 long."""

    def __init__(self, latent: int) -> None:
        self.latent = latent

    def __call__(self, latents: Tensor, source: Tensor, target: Tensor) -> Tensor:
        way = torch.zeros_like(latents)
        way[:, self.latent] = 0.1 * (target - source)
        return way

    def spread(self, latents: Tensor) -> Tensor:
        return torch.full_like(latents[0], 0.1)

    def expect(self, encoder: Any, classes: Any, size: Any) -> None:
        pass


class Left(nn.Module):
    """A classifier of the left half's brightness; counts how many images it was asked about."""

    classes = ("dark", "bright")

    def __init__(self, labels: bool = False, edge: float = 0.5) -> None:
        super().__init__()
        self.labels, self.edge, self.asked = labels, edge, 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        z = 40 * (images[:, :, :, : SIZE // 2].mean((1, 2, 3)) - self.edge)
        scores = torch.stack([-z / 2, z / 2], 1)
        if self.labels:
            return nn.functional.one_hot(scores.argmax(1), 2).float().log()
        return scores


def asked(levels: list[int]) -> ImageQueries:
    """Grey images of some 8-bit levels, all dark, and the wish that they were bright."""
    images = torch.tensor(levels).float().div(255)[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    n = len(levels)
    return ImageQueries(
        images=images.clone(),
        source=torch.zeros(n, dtype=torch.int64),
        target=torch.ones(n, dtype=torch.int64),
        seed=torch.arange(n),
    )


def explain(queries: ImageQueries, classifier: nn.Module, latent: int = 0, **settings: Any) -> Any:
    method = LatentDirection(**settings)
    return method(queries, classifier=classifier, autoencoder=Grey(), direction=Ways(latent))


@pytest.mark.parametrize("labels", [False, True])
def test_the_nearest_passing_point_of_the_line_is_found_in_few_queries(labels: bool) -> None:
    classifier = Left(labels)
    queries = asked([40, 77, 102])
    answers = explain(queries, classifier, threshold=0.5, ask="labels" if labels else "scores")
    assert answers.flipped.all()
    left = answers.counterfactual[:, 0, 0, 0] * 255
    # the first 8-bit level above a half, or the next one: the bisection ends within 0.01 sigma
    assert ((left >= 128) & (left <= 129)).all()
    right = answers.counterfactual[:, 0, 0, -1]
    assert torch.equal(right, queries.images[:, 0, 0, -1]), "the rest stays"
    assert (answers.steps <= 5 + 8).all()
    assert int(answers.steps.sum()) + len(queries) == classifier.asked, "and one verdict each"
    assert (answers.backward == 0).all()


def test_the_threshold_is_kept_on_the_stored_image() -> None:
    answers = explain(asked([60]), classifier := Left(), threshold=0.9)
    p = classifier(answers.counterfactual).softmax(1)[0, 1]
    assert 0.9 < float(p) < 0.96


def test_random_blocks_find_what_the_line_does_not() -> None:
    """The line moves the right half, which the classifier does not read."""
    answers = explain(asked([60, 90]), Left(), latent=1, threshold=0.6, block=0.5, reach=1.0)
    assert answers.flipped.all()
    assert (answers.steps > 6 + 8).all()
    assert (answers.steps <= 500).all()
    left = answers.counterfactual[:, 0, 0, 0] * 255
    assert (left < 140).all(), "the bisection comes back"


def test_no_more_queries_than_allowed() -> None:
    classifier = Left(edge=2.0)  # no image is bright enough
    answers = explain(asked([60, 90]), classifier, max_queries=30)
    assert not answers.flipped.any()
    assert answers.reasons == ["not converged", "not converged"]
    # the blocks leave the bisection's share
    assert (answers.steps == 30 - 8).all()
    few = explain(asked([60]), Left(), max_queries=4, bisections=8)
    assert int(few.steps) <= 4


def test_a_row_that_is_there_already_stays() -> None:
    queries = asked([200])
    there = ImageQueries(
        images=queries.images, source=queries.target, target=queries.target, seed=queries.seed
    )
    answers = explain(there, Left(), max_queries=20)
    assert answers.flipped.all()
    assert torch.equal(answers.counterfactual, queries.images)


def test_settings_are_checked() -> None:
    assert LatentDirection(ask="labels").access == "labels"
    assert LatentDirection().access == "scores"
    for wrong in (
        {"ask": "gradient"},
        {"first": 20.0},
        {"max_queries": 0},
        {"block": 2.0},
        {"threshold": -1.0},
    ):
        with pytest.raises(ValueError, match="expected"):
            LatentDirection(**wrong)  # type: ignore[arg-type]
