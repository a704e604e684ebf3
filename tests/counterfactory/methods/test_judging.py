"""How every method ends: the verdict on what is stored, and a reason where there is no flip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.contract import (
    Budget,
    ImageQueries,
    passes_stored,
    settle,
    stored_verdict,
    to_8bit,
)


class Sharp(nn.Module):
    """Class 1 above a brightness that lies between two 8-bit levels; NaN where the
    image is black."""

    classes = ("below", "above")

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.flatten(1).mean(1)
        logit = torch.where(brightness > 0, 1e4 * (brightness - 100.2 / 255), torch.nan)
        return torch.stack([torch.zeros_like(logit), logit], 1)


def flat(*levels: float) -> Tensor:
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()


def queries(n: int) -> ImageQueries:
    zeros = torch.zeros(n, dtype=torch.int64)
    return ImageQueries(images=flat(*[50.0] * n), source=zeros, target=zeros + 1, seed=zeros)


def test_rounding_is_to_the_nearest_level_and_stays() -> None:
    levels = torch.tensor([-3.0, 0.0, 0.49, 0.51, 99.6, 254.6, 300.0]) / 255
    assert torch.equal(
        to_8bit(levels) * 255, torch.tensor([0.0, 0.0, 0.0, 1.0, 100.0, 255.0, 255.0])
    )
    every = torch.arange(256) / 255
    assert torch.equal(to_8bit(every), every)


def test_the_verdict_is_on_the_stored_image_and_nan_is_no_flip() -> None:
    flipped, p = stored_verdict(Sharp(), flat(100.4, 100.6, 0.0), torch.tensor([1, 1, 0]))
    assert flipped.tolist() == [False, True, False]
    assert float(p[0]) < 0.5 < float(p[1])
    assert bool(p[2].isnan())


def test_only_rows_that_pass_as_they_are_are_looked_at_as_stored() -> None:
    images, budget = flat(100.4, 101.0, 60.0, 0.0), Budget.of(9)
    p = Sharp()(images).softmax(1)[:, 1]
    assert (p > 0.75).tolist() == [True, True, False, False]
    passes = passes_stored(
        Sharp(), images, torch.ones(4).long(), p, 0.75, torch.tensor([8, 2, 3, 4]), budget
    )
    assert passes.tolist() == [False, True, False, False]
    assert budget.forward.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_settling_names_what_was_lost() -> None:
    budget = Budget.of(5)
    images = flat(100.4, 101.0, 60.0, torch.nan, 100.4)
    reasons = ["not converged"] * 4 + ["other"]
    answers = settle(
        Sharp(), images, queries(5), reasons, budget, steps=torch.arange(5), mask=images[:, :1]
    )
    assert answers.steps.tolist() == [0, 1, 2, 3, 4]
    assert answers.mask is not None
    assert answers.latent_after is None
    assert answers.flipped.tolist() == [False, True, False, False, False]
    assert answers.reasons == [
        "flip lost in 8-bit",
        None,
        "not converged",
        "non-finite image",
        "flip lost in 8-bit",
    ]
    assert torch.equal(answers.counterfactual, flat(100, 101, 60, 50, 100))
    assert budget.forward.tolist() == [2, 1, 2, 2, 2]
    assert budget.backward.tolist() == [0] * 5


def test_queries_are_checked() -> None:
    with pytest.raises(
        ValueError,
        match=r"expected target of shape \(2,\) and dtype int64, got \(2,\) torch.float32",
    ):
        ImageQueries(
            images=flat(1, 2),
            source=torch.zeros(2).long(),
            target=torch.zeros(2),
            seed=torch.zeros(2).long(),
        )
    with pytest.raises(ValueError, match="expected images of shape"):
        ImageQueries(
            images=flat(1, 2)[0], source=torch.zeros(1), target=torch.zeros(1), seed=torch.zeros(1)
        )
