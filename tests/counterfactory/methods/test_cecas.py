"""CECAS: both attacks against a straight-line transcription, what guidance holds still, and whose
mask it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.ace import ACE
from counterfactory.methods.cecas import CECAS
from counterfactory.methods.contract import ImageQueries, to_8bit
from counterfactory.methods.parts.diffusion import keep_mask


def transcribed(
    image: Tensor,
    target: int,
    seed: int,
    *,
    causal: bool,
    models: dict[str, Any],
    alpha: float,
    weight: float,
    **n: int,
) -> Tensor:
    """x' (causal) or x'' of one image after all iterations, line by line from the paper, without
    any of our code.
    """
    kept = [
        round(j * (len(models["denoiser"].alphas_cumprod) - 1) / (n["respaced"] - 1))
        for j in range(n["respaced"])
    ]
    abar = np.asarray(models["denoiser"].alphas_cumprod, dtype=np.float64)[kept]
    K, generator, x = n["levels"], torch.Generator().manual_seed(seed), image.clone()
    z = models["spurious"](image[None], models["classifier"])[0, 0]
    for _ in range(n["iterations"]):
        noise = torch.randn((K, *image.shape), generator=generator)
        x = x.detach().requires_grad_()
        x_t = float(abar[K - 1] ** 0.5) * (2 * x - 1) + float((1 - abar[K - 1]) ** 0.5) * noise[0]
        for j, t in enumerate(range(K - 1, -1, -1)):
            eps = models["denoiser"](x_t[None], torch.tensor([kept[t]]))[0][0]
            x0 = ((x_t - float((1 - abar[t]) ** 0.5) * eps) / float(abar[t] ** 0.5)).clamp(-1, 1)
            if t == 0:
                x_t = x0
                break
            beta = 1 - abar[t] / abar[t - 1]
            x_t = (
                float(beta * abar[t - 1] ** 0.5 / (1 - abar[t])) * x0
                + float((1 - abar[t - 1]) * (1 - beta) ** 0.5 / (1 - abar[t])) * x_t
                + float((beta * (1 - abar[t - 1]) / (1 - abar[t])) ** 0.5) * noise[j + 1]
            )
        view = ((x_t + 1) / 2)[None]
        scores = models["classifier"](view)[0]
        loss = torch.logsumexp(scores, 0) - scores[target]  # L(F(x'), y')
        if causal:
            z_now = models["spurious"](view, models["classifier"])[0, 0]
            # L_S(z, z')
            loss = loss + alpha * (torch.logsumexp(z_now, 0) - (z.softmax(0) * z_now).sum())
        else:
            loss = loss + weight * (x - image).abs().sum()  # eq. 7
        loss.backward()
        assert x.grad is not None
        x = (x.detach() - x.grad.sign() / 255).clamp(0, 1)
    return x


@pytest.fixture
def used(models: dict[str, nn.Module]) -> dict[str, Any]:
    return {
        name: models[name].requires_grad_(False) for name in ("classifier", "denoiser", "spurious")
    }


@pytest.mark.parametrize("iterations", [1, 3, 8])
@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_both_attacks_are_the_papers(
    used: dict[str, Any],
    queries: ImageQueries,
    monkeypatch: pytest.MonkeyPatch,
    iterations: int,
    alpha: float,
) -> None:
    import counterfactory.methods.cecas as room

    ends: list[Tensor] = []
    original = room.PurifiedPGD.__call__

    def watched(self: Any, *given: Any, **told: Any) -> Any:
        attacked = original(self, *given, **told)
        ends.append(attacked.images)
        return attacked

    monkeypatch.setattr(room.PurifiedPGD, "__call__", watched)
    sizes = {"respaced": 10, "levels": 3, "iterations": iterations}
    CECAS(alpha=alpha, weight=0.02, **sizes)(queries, **used)  # type: ignore[arg-type]
    for row in (0, 5):
        for half, causal in ((0, True), (8, False)):
            expected = transcribed(
                queries.images[row],
                int(queries.target[row]),
                int(queries.seed[row]),
                causal=causal,
                models=used,
                alpha=alpha,
                weight=0.02,
                **sizes,
            )
            off = ((ends[0][half + row] - expected).abs() > 0.5 / 255).float().mean()
            assert float(off) <= 0.002, f"causal={causal}: {float(off):.1%} of the pixels differ"


def test_without_guidance_it_is_ace_with_the_mask_of_x_near(
    used: dict[str, Any], queries: ImageQueries
) -> None:
    sizes: dict[str, Any] = {"respaced": 10, "levels": 2, "iterations": 5}
    plain = {name: used[name] for name in ("classifier", "denoiser")}
    alone = ACE(**sizes, weight=0.0, refine=False)(queries, **plain)
    got = CECAS(**sizes, alpha=0.0, refine=False)(queries, **used)
    assert torch.equal(got.counterfactual, alone.counterfactual)
    # What is inpainted is what x'' changed, the attack with the distance: ACE's own pre-explanation
    # has that mask.
    near = ACE(**sizes, weight=0.02, refine=False)(queries, **plain).counterfactual
    keep = keep_mask(queries.images, near, gamma=0.9, kernel=1)
    assert 0.1 < float(keep.float().mean()) < 0.9
    answers = CECAS(**sizes, alpha=0.2, weight=0.02, gamma=0.9, kernel=1)(queries, **used)
    assert answers.mask is not None
    refined = (answers.mask == 0).flatten(1).any(1)
    assert bool(refined.any())
    assert torch.equal(answers.mask[refined] == 0, keep[refined])
    kept = (answers.mask == 0).expand_as(queries.images)
    assert torch.equal(answers.counterfactual[kept], queries.images[kept])


class Halves(nn.Module):
    """Bright where both halves of the image together are; the spurious model reads the right half
    alone.
    """

    classes = ("dark", "bright")

    def forward(self, images: Tensor) -> Tensor:
        logit = 40 * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-logit / 2, logit / 2], 1)


class RightHalf(nn.Module):
    attributes = ("Left", "Right")

    def forward(self, images: Tensor, classifier: Any = None) -> Tensor:
        left, right = (40 * (half.flatten(1).mean(1) - 0.4) for half in images.chunk(2, 3))
        if classifier is None:
            return torch.stack([left, right], 1).sigmoid()
        return torch.stack([-right / 2, right / 2], 1)[:, None]


class Nothing(nn.Module):
    alphas_cumprod = torch.cumprod(1 - torch.full((10,), 1e-4, dtype=torch.float64), 0)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(x_t), None


@pytest.mark.parametrize("named", [None, ["Right"]])
def test_guidance_holds_the_spurious_half_still(named: Any) -> None:
    images = to_8bit(torch.full((2, 3, 16, 16), 0.4))
    zeros = torch.zeros(2, dtype=torch.int64)
    queries = ImageQueries(images=images, source=zeros, target=zeros + 1, seed=zeros + 5)
    moved = {}
    for alpha in (0.0, 10.0):
        method = CECAS(
            alpha=alpha,
            spurious=named,
            respaced=10,
            levels=1,
            iterations=60,
            weight=0.0,
            refine=False,
            stop=0.8,
        )
        answers = method(
            queries,
            classifier=Halves(),
            denoiser=Nothing(),
            spurious=RightHalf() if named else Only(),
        )
        assert bool(answers.flipped.all())
        left, right = (answers.counterfactual - images).chunk(2, 3)
        moved[alpha] = float(left.mean()), float(right.mean())
    assert moved[0.0][0] == pytest.approx(moved[0.0][1], rel=0.05)
    assert moved[10.0][0] > 0.15
    assert abs(moved[10.0][1]) < 0.02


class Only(RightHalf):
    """Spurious factors without names, as the causal model has them."""

    attributes = None  # type: ignore[assignment]


def test_a_row_is_charged_for_both_attacks(used: dict[str, Any], queries: ImageQueries) -> None:
    answers = CECAS(respaced=10, levels=3, iterations=4)(queries, **used)
    # x': 3 denoiser calls, the classifier, its features and the factors; x'': without these two; 3
    # + 2 to refine, the query's factors (2), the verdict
    assert set((answers.forward - 4 * (3 + 1 + 2) - 4 * (3 + 1)).tolist()) <= {5 + 2 + 1, 5 + 2 + 2}
    assert answers.backward.tolist() == [4 * (4 + 2) + 4 * 4] * 8


def test_a_model_that_cannot_tell_is_refused(used: dict[str, Any], queries: ImageQueries) -> None:
    asked: list[Any] = []
    used["spurious"].expect = asked.append  # as the causal model has it, which knows its classifier
    CECAS().expect(used)
    assert asked == [used["classifier"]]
    with pytest.raises(ValueError, match=r"role attributes for method.settings.spurious"):
        CECAS(spurious=("Right",)).expect({"spurious": used["spurious"]})
    with pytest.raises(ValueError, match=r"names of attributes that models.spurious tells"):
        CECAS().expect({"spurious": RightHalf()})
    with pytest.raises(ValueError, match="out of Left, Right, got 'Hair'"):
        CECAS(spurious=("Hair",)).expect({"spurious": RightHalf()})
    with pytest.raises(ValueError, match="expected alpha from 0"):
        CECAS(alpha=-1.0)
