"""STEEX: torch's Adam as a reference, changes that stay in their regions, and what stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from counterfactory.methods.contract import ImageQueries
from counterfactory.methods.steex import STEEX

Pick = Callable[[ImageQueries, list[int]], ImageQueries]


@pytest.fixture
def used(models: dict[str, nn.Module]) -> dict[str, Any]:
    return {"classifier": models["classifier"], "semantic": models["semantic"]}


@pytest.mark.parametrize("regions", [None, ["right"]])
@pytest.mark.parametrize("residual", [False, True])
def test_every_step_is_that_of_torchs_adam(
    residual: bool,
    regions: list[str] | None,
    used: dict[str, Any],
    queries: ImageQueries,
    pick: Pick,
) -> None:
    one = pick(queries, [0])
    x, y, masks = one.images, int(one.target), one.masks
    assert masks is not None
    F, G = used["classifier"], used["semantic"]
    z0 = G.encode(x, masks)
    free = [
        z0[:, r].clone().requires_grad_(not regions or name in regions)
        for r, name in enumerate(G.regions)
    ]
    adam = torch.optim.Adam([style for style in free if style.requires_grad], lr=0.05)
    for _ in range(6):
        made = G.decode(torch.stack(free, 1), masks)
        image = (x + made - G.decode(z0, masks)).clamp(0, 1) if residual else made
        if regions:
            image = torch.where(masks[:, None] == 2, image, x)
        distance = sum((style - z0[:, r]).square().sum() for r, style in enumerate(free))
        loss = -F(image).log_softmax(1)[0, y] + 0.3 * distance
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
    method = STEEX(lr=0.05, max_steps=6, residual=residual, regions=regions)  # type: ignore[arg-type]  # a config's list
    answers = method(one, **used)
    assert int(answers.steps) == 6
    torch.testing.assert_close(
        answers.latent_after, torch.stack(free, 1).detach().flatten(1), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("residual", [False, True])
def test_only_the_pixels_of_the_regions_change(
    residual: bool, used: dict[str, Any], queries: ImageQueries
) -> None:
    settings: dict[str, Any] = {
        "lr": 0.1,
        "max_steps": 20,
        "distance_weight": 0.0,
        "residual": residual,
    }
    assert queries.masks is not None
    outside = (queries.masks != 1)[:, None].expand_as(queries.images)
    pasted, loose = (
        STEEX(regions=("left",), confine=confine, **settings)(queries, **used)
        for confine in (True, False)
    )
    assert torch.equal(pasted.counterfactual[outside], queries.images[outside])
    assert bool(((pasted.counterfactual - queries.images)[:7].abs().flatten(1).sum(1) > 1).all())
    assert not torch.equal(loose.counterfactual[outside], queries.images[outside])
    for answers in (pasted, loose):
        assert answers.latent_before is not None
        assert answers.latent_after is not None
        moved = (answers.latent_after - answers.latent_before).unflatten(1, (3, 3)) != 0
        assert bool(moved[:7, 1].all())
        assert not bool(moved[:, [0, 2]].any())
    assert pasted.mask is not None
    assert torch.equal(pasted.mask[:, 0] == 1, queries.masks == 1)
    assert loose.mask is None


def test_the_paper_takes_all_steps_and_a_threshold_stops(
    used: dict[str, Any], queries: ImageQueries
) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "max_steps": 40, "distance_weight": 0.0}
    whole, sure = (STEEX(threshold=p, **settings)(queries, **used) for p in (1.0, 0.8))
    assert whole.steps.tolist() == [40] * 7 + [0]  # the last row has its target
    p = used["classifier"](sure.counterfactual).softmax(1).gather(1, queries.target[:, None])[:, 0]
    stopped = (sure.steps < 40)[:7]
    assert bool(stopped.any())
    assert bool((p[:7][stopped] > 0.8).all())
    assert torch.equal(sure.counterfactual[-1], queries.images[-1])


def test_a_rows_second_moment_leaves_the_gradients_direction(
    used: dict[str, Any], queries: ImageQueries, pick: Pick
) -> None:
    one = pick(queries, [0])
    assert one.masks is not None
    z = used["semantic"].encode(one.images, one.masks).requires_grad_()
    image = (
        one.images
        + used["semantic"].decode(z, one.masks)
        - used["semantic"].decode(z.detach(), one.masks)
    ).clamp(0, 1)
    loss = -used["classifier"](image).log_softmax(1)[0, int(one.target)]
    (grad,) = torch.autograd.grad(loss, z)
    answers = STEEX(lr=0.01, max_steps=1, second_moment="row")(one, **used)
    assert answers.latent_before is not None
    assert answers.latent_after is not None
    wanted = -0.01 * grad / grad.square().mean().sqrt()
    moved = answers.latent_after - answers.latent_before
    torch.testing.assert_close(moved, wanted.flatten(1), atol=1e-5, rtol=1e-3)


def test_a_heavy_distance_keeps_the_styles(used: dict[str, Any], queries: ImageQueries) -> None:
    ways = []
    for weight in (0.0, 100.0):
        answers = STEEX(distance_weight=weight, lr=0.05)(queries, **used)
        assert answers.latent_before is not None
        assert answers.latent_after is not None
        ways.append((answers.latent_after - answers.latent_before).norm(dim=1)[:7])
    assert bool((ways[1] < ways[0]).all())


def test_a_row_without_the_region_ends_with_that_reason(
    used: dict[str, Any], queries: ImageQueries
) -> None:
    assert queries.masks is not None
    masks = queries.masks.clone()
    masks[3][masks[3] == 1] = 0
    answers = STEEX(regions=("left",), lr=0.1)(replace(queries, masks=masks), **used)
    assert answers.reasons[3] == "its mask has nothing of left"
    assert int(answers.steps[3]) == 0
    assert torch.equal(answers.counterfactual[3], queries.images[3])


def test_masks_and_known_regions_are_asked_for(used: dict[str, Any], queries: ImageQueries) -> None:
    with pytest.raises(ValueError, match=r"expected queries with masks \(data.mask\), got none"):
        STEEX()(replace(queries, masks=None), **used)
    with pytest.raises(
        ValueError, match="expected regions out of ground, left, right, got 'mouth'"
    ):
        STEEX(regions=("mouth",)).expect(used)
    assert queries.masks is not None
    with pytest.raises(
        ValueError,
        match=r"expected masks of shape \(8, 16, 16\) and dtype int64, got \(8, 16, 16\)",
    ):
        replace(queries, masks=queries.masks.float())
    twice = queries.repeated(2).masks
    assert twice is not None
    assert torch.equal(twice[1::2], queries.masks)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"max_steps": 0.5}, {"threshold": 2.0}, {"regions": []}, {"second_moment": "x"}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        STEEX(**wrong)
