"""What saves work in the attack through a denoiser: the last calls' gradient alone, an early mask,
half precision.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.ace import ACE
from counterfactory.methods.contract import ImageQueries, to_8bit
from counterfactory.methods.parts.diffusion import keep_mask, purify, respace

SIZES: dict[str, Any] = {"respaced": 10, "levels": 3, "iterations": 5, "weight": 0.01}


@pytest.fixture
def diffusion(models: dict[str, nn.Module]) -> dict[str, Any]:
    return {name: models[name].requires_grad_(False) for name in ("classifier", "denoiser")}


def gradient(diffusion: dict[str, Any], through: int | None) -> tuple[Tensor, Tensor]:
    schedule = respace(diffusion["denoiser"].alphas_cumprod, 10)
    x = (
        torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    ).requires_grad_()
    noise = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 0.3
    view = purify(diffusion["denoiser"], schedule, x, noise, through=through)
    (grad,) = torch.autograd.grad((view**2).sum(), x)
    return view.detach(), grad


def test_the_view_is_the_same_however_far_the_gradient_goes_back(diffusion: dict[str, Any]) -> None:
    view, whole = gradient(diffusion, None)
    similar = []
    for through in (0, 1, 2, 3, 4):
        same, grad = gradient(diffusion, through)
        torch.testing.assert_close(same, view)
        similar.append(float(torch.cosine_similarity(grad.flatten(), whole.flatten(), 0)))
    assert similar[4] == pytest.approx(1)
    assert similar[0] < similar[2] < similar[3] < 1, similar


def test_without_any_call_the_gradient_is_that_of_the_view(diffusion: dict[str, Any]) -> None:
    view, grad = gradient(diffusion, 0)
    torch.testing.assert_close(grad, 2 * view)


def test_calls_without_a_gradient_are_not_charged_for_one(
    diffusion: dict[str, Any], queries: ImageQueries
) -> None:
    whole, last = (
        ACE(**SIZES, refine=False, through=through)(queries, **diffusion) for through in (None, 1)
    )
    assert set((whole.backward - last.backward).tolist()) == {2 * 5}
    assert torch.equal(whole.steps, last.steps)
    spared = ACE(**SIZES, refine=False, through=1, checkpoint=True)(queries, **diffusion)
    assert torch.equal(spared.counterfactual, last.counterfactual)
    assert set((spared.forward - last.forward).tolist()) == {5}


def test_an_early_mask_keeps_what_hardly_changed(
    diffusion: dict[str, Any], queries: ImageQueries
) -> None:
    settings: dict[str, Any] = {**SIZES, "refine": False, "gamma": 0.9, "kernel": 1}
    early = ACE(**{**settings, "iterations": 2})(queries, **diffusion).counterfactual
    keep = keep_mask(queries.images, early, gamma=0.9, kernel=1)
    assert 0.1 < float(keep.float().mean()) < 0.9
    answers = ACE(**{**settings, "iterations": 9}, mask_after=2)(
        queries, **diffusion
    ).counterfactual
    kept = keep.expand_as(answers)
    assert torch.equal(answers[kept], queries.images[kept])
    assert float((answers != queries.images)[~kept].float().mean()) > 0.5


def test_bfloat16_is_for_the_denoiser_alone(
    diffusion: dict[str, Any], queries: ImageQueries
) -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    class Watched(nn.Module):
        alphas_cumprod = diffusion["denoiser"].alphas_cumprod

        def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
            seen.append((x_t.dtype, torch.is_autocast_enabled("cpu")))
            return diffusion["denoiser"](x_t, t)  # type: ignore[no-any-return]

    class Sharp(nn.Module):
        classes = diffusion["classifier"].classes

        def forward(self, images: Tensor) -> Tensor:
            assert images.dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
            return diffusion["classifier"](images)  # type: ignore[no-any-return]

    models: Any = {"classifier": Sharp(), "denoiser": Watched()}
    answers = ACE(**SIZES, precision="bfloat16")(queries, **models)
    attack, refining = seen[:15], seen[15:]
    assert all(flag for _, flag in attack)
    assert len(refining) == 3
    assert torch.equal(answers.counterfactual, to_8bit(answers.counterfactual))


@pytest.mark.parametrize("wrong", [{"through": 6}, {"mask_after": 0}, {"precision": "float16"}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))}"):
        ACE(**wrong)
