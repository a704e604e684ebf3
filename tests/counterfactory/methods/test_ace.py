"""ACE: its loop against a straight-line transcription, its refinement, and weights that do not know
the batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.ace import ACE
from counterfactory.methods.contract import ImageQueries, to_8bit
from counterfactory.methods.parts.diffusion import keep_mask

Pick = Callable[[ImageQueries, list[int]], ImageQueries]


def transcribed(
    image: Tensor,
    target: int,
    seed: int,
    *,
    classifier: Any,
    denoiser: Any,
    distance: str,
    weight: float,
    **settings: int,
) -> list[Tensor]:
    """The attack's iterates for one image, written down line by line from the papers, without any
    of our code.
    """
    N, K = settings["respaced"], settings["levels"]
    abar_all = np.asarray(denoiser.alphas_cumprod, dtype=np.float64)
    kept = [round(j * (len(abar_all) - 1) / (N - 1)) for j in range(N)]
    abar = abar_all[kept]
    alpha = np.append(abar[0], abar[1:] / abar[:-1])
    generator = torch.Generator().manual_seed(seed)
    x, iterates = image.clone(), []
    for _ in range(settings["iterations"]):
        z = torch.randn((K, *image.shape), generator=generator)
        x = x.detach().requires_grad_()
        x_t = float(np.sqrt(abar[K - 1])) * (2 * x - 1) + float(np.sqrt(1 - abar[K - 1])) * z[0]
        for j, t in enumerate(range(K - 1, -1, -1)):
            eps = denoiser(x_t[None], torch.tensor([kept[t]]))[0][0]
            x0 = (float(1 / np.sqrt(abar[t])) * x_t - float(np.sqrt(1 / abar[t] - 1)) * eps).clamp(
                -1, 1
            )
            if t == 0:
                x_t = x0
                break
            beta = 1 - alpha[t]
            x_t = (
                float(beta * np.sqrt(abar[t - 1]) / (1 - abar[t])) * x0
                + float((1 - abar[t - 1]) * np.sqrt(alpha[t]) / (1 - abar[t])) * x_t
                + float(np.sqrt(beta * (1 - abar[t - 1]) / (1 - abar[t]))) * z[j + 1]
            )
        scores = classifier(((x_t + 1) / 2)[None])[0]
        loss = torch.logsumexp(scores, 0) - scores[target]
        moved = x - image
        if distance == "l1":
            loss = loss + weight * moved.abs().sum()
        elif bool(moved.any()):
            loss = loss + weight * (moved * moved).sum().sqrt()
        loss.backward()
        assert x.grad is not None
        x = (x.detach() - x.grad.sign() / 255).clamp(0, 1)
        iterates.append(x)
    return iterates


@pytest.fixture
def diffusion(models: dict[str, nn.Module]) -> dict[str, Any]:
    return {name: models[name].requires_grad_(False) for name in ("classifier", "denoiser")}


@pytest.mark.parametrize(
    ("distance", "weight"), [("l1", 0.001), ("l1", 0.02), ("l2", 0.1), ("l2", 2.0)]
)
def test_every_iterate_is_the_papers(
    diffusion: dict[str, Any], queries: ImageQueries, distance: str, weight: float
) -> None:
    settings = {"respaced": 10, "levels": 4, "iterations": 8}
    common: dict[str, Any] = {"distance": distance, "weight": weight}
    for row in (0, 4):
        target, seed = int(queries.target[row]), int(queries.seed[row])
        iterates = transcribed(queries.images[row], target, seed, **diffusion, **common, **settings)
        for iteration, expected in enumerate(iterates, 1):
            method = ACE(**common, **{**settings, "iterations": iteration}, refine=False)
            got = method(queries, **diffusion).counterfactual[row]
            off = ((got - to_8bit(expected)).abs() > 0.5 / 255).float().mean()
            # A gradient at zero has its sign from rounding; nothing else may differ.
            assert float(off) <= 0.002, (
                f"iteration {iteration}: {float(off):.1%} of the pixels differ"
            )


def moved_share(answers: Any, queries: ImageQueries) -> Tensor:
    change: Tensor = (answers.counterfactual != queries.images).flatten(1).float().mean(1)
    return change


def test_lambda_weighs_the_same_in_every_batch(
    diffusion: dict[str, Any], queries: ImageQueries, pick: Pick
) -> None:
    """One public ACE mixes a batch mean with a batch sum, so that lambda grows with the batch."""
    shares = []
    for weight in (0.0, 0.01, 1.0):
        method = ACE(respaced=10, levels=2, iterations=6, weight=weight, refine=False)
        together = method(queries, **diffusion)
        alone = method(pick(queries, [0]), **diffusion)
        assert torch.equal(together.counterfactual[:1], alone.counterfactual)
        shares.append(float(moved_share(together, queries).mean()))
    assert shares[0] > shares[1] + 0.05 > shares[2] + 0.1, f"lambda has no effect: {shares}"


def test_the_gradient_is_that_of_one_row(
    diffusion: dict[str, Any], queries: ImageQueries, pick: Pick
) -> None:
    """Eight times the same row in a batch is the row, eight times."""
    same = pick(queries, [2] * 8)
    method = ACE(respaced=10, levels=2, iterations=5, weight=0.01)
    answers = method(same, **diffusion)
    assert torch.equal(answers.counterfactual, answers.counterfactual[:1].expand(8, -1, -1, -1))
    assert torch.equal(
        answers.counterfactual[:1], method(pick(queries, [2]), **diffusion).counterfactual
    )


def test_the_keep_mask_is_the_papers() -> None:
    x = torch.zeros(2, 3, 20, 20)
    x_pre = x.clone()
    x_pre[0, 0, 10, 10], x_pre[0, 1, 10, 10] = 0.3, -0.2  # the largest change of row 0: 0.5
    x_pre[0, 2, 2, 2] = 0.04  # 8 % of it
    keep = keep_mask(x, x_pre, gamma=0.15, kernel=5)
    expected = torch.ones(20, 20, dtype=torch.bool)
    expected[8:13, 8:13] = False
    assert torch.equal(keep[0, 0], expected)
    assert bool(keep[1].all()), "a row that did not change is kept whole"
    expected[0:5, 0:5] = False
    assert torch.equal(keep_mask(x, x_pre, gamma=0.05, kernel=5)[0, 0], expected)


class TwoFaced(nn.Module):
    """A denoiser that is near the identity under the attack, and another one when no gradient is
    asked for.
    """

    def __init__(self, steps: int, refining: float | None, attacking: float = 0.0) -> None:
        super().__init__()
        self.refining, self.attacking = refining, attacking
        self.alphas_cumprod = torch.cumprod(1 - torch.full((steps,), 1e-3, dtype=torch.float64), 0)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
        shift = self.attacking if torch.is_grad_enabled() else self.refining
        if shift is None or shift == 0:
            return torch.zeros_like(x_t), None
        abar = self.alphas_cumprod[t].to(x_t.dtype)[:, None, None, None]
        return (x_t - abar.sqrt() * (x_t + shift)) / (1 - abar).sqrt(), None  # x0 = x_t + shift


class Bright(nn.Module):
    """Class 1 where the image is bright, class 0 where it is dark, decided at 0.5."""

    classes = ("dark", "bright")

    def forward(self, images: Tensor) -> Tensor:
        logit = 40 * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-logit / 2, logit / 2], 1)


def dark() -> ImageQueries:
    images = (
        torch.randint(110, 126, (3, 3, 16, 16), generator=torch.Generator().manual_seed(8)).float()
        / 255
    )
    zeros = torch.zeros(3, dtype=torch.int64)
    return ImageQueries(images=images, source=zeros, target=zeros + 1, seed=zeros + 7)


@pytest.mark.parametrize(
    ("iterations", "refining", "attacking", "flips", "refined", "reason"),
    [
        (20, 0.0, 0.0, True, True, None),  # both flip: the refined one is the answer
        # refinement undoes the flip: the pre-explanation is the answer
        (20, -0.8, 0.0, True, False, None),
        (4, 0.8, 0.0, True, True, None),  # only the refined one flips
        (2, -0.8, 0.0, False, False, "not converged"),  # neither
        (4, -0.8, 0.8, False, False, "flip lost in refinement"),  # only through the denoiser
    ],
)
def test_the_better_candidate_is_the_answer(
    iterations: int,
    refining: float,
    attacking: float,
    flips: bool,
    refined: bool,
    reason: str | None,
) -> None:
    queries = dark()
    # gamma 0 keeps nothing, so that the refined image differs from the pre-explanation everywhere.
    settings: dict[str, Any] = {
        "respaced": 10,
        "levels": 2,
        "iterations": iterations,
        "weight": 0.0,
        "gamma": 0.0,
    }
    models: dict[str, Any] = {"classifier": Bright(), "denoiser": TwoFaced(10, refining, attacking)}
    answers = ACE(**settings, unrefined=True)(queries, **models)
    pre = ACE(**settings, refine=False)(queries, **models)
    assert answers.flipped.tolist() == [flips] * 3
    assert answers.reasons == [reason] * 3
    assert torch.equal(answers.counterfactual, pre.counterfactual) != refined
    assert bool((answers.counterfactual >= 0).all())


def test_the_papers_answer_is_the_refined_image_even_where_it_undoes_the_flip() -> None:
    """Where refinement undoes the flip, the row then has none, and its best try is a
    refined image."""
    settings: dict[str, Any] = {
        "respaced": 10,
        "levels": 2,
        "iterations": 20,
        "weight": 0.0,
        "gamma": 0.0,
    }
    models: dict[str, Any] = {"classifier": Bright(), "denoiser": TwoFaced(10, -0.8)}
    answers = ACE(**settings)(dark(), **models)
    assert answers.flipped.tolist() == [False] * 3
    assert answers.reasons == ["flip lost in refinement"] * 3
    assert (
        float(answers.counterfactual.mean())
        < 0.2
        < float(ACE(**settings, unrefined=True)(dark(), **models).counterfactual.mean())
    )


def test_a_refinement_that_cannot_be_judged_leaves_the_query() -> None:
    settings: dict[str, Any] = {
        "respaced": 10,
        "levels": 2,
        "iterations": 20,
        "weight": 0.0,
        "gamma": 0.0,
    }
    models: dict[str, Any] = {"classifier": Bright(), "denoiser": TwoFaced(10, torch.nan)}
    answers = ACE(**settings, unrefined=False)(dark(), **models)
    assert answers.flipped.tolist() == [False] * 3
    assert torch.equal(answers.counterfactual, dark().images)


def test_more_draws_are_taken_by_rows_that_lost_the_flip_alone() -> None:
    draws: dict[str, Any] = {
        "respaced": 10,
        "levels": 2,
        "iterations": 20,
        "weight": 0.0,
        "gamma": 0.0,
    }
    lost, kept = (
        [
            ACE(**draws, draws=n)(
                dark(), classifier=Bright(), denoiser=TwoFaced(10, shift)
            ).forward.tolist()
            for n in (1, 4)
        ]
        for shift in (-0.8, 0.0)
    )
    # each draw: two denoiser calls and a look at what is stored
    assert lost[1] == [n + 3 * 3 for n in lost[0]]
    assert kept[1] == kept[0]


def test_a_refined_answer_is_the_query_outside_its_mask(
    diffusion: dict[str, Any], queries: ImageQueries
) -> None:
    answers = ACE(respaced=10, levels=3, iterations=12, gamma=0.9, kernel=3, weight=0.02)(
        queries, **diffusion
    )
    assert answers.mask is not None
    kept = (answers.mask == 0).expand_as(queries.images)
    assert 0.05 < float(kept.float().mean()) < 0.95
    assert torch.equal(answers.counterfactual[kept], queries.images[kept])


def test_rows_that_pass_leave_the_batch_and_fixed_iterations_stay(
    diffusion: dict[str, Any],
) -> None:
    queries, sizes = dark(), []
    queries.images[1] = to_8bit(queries.images[1] - 20 / 255)  # further to go
    queries.images[2] = to_8bit(queries.images[2] + 30 / 255)  # there already

    class Watched(TwoFaced):
        def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
            sizes.append(len(x_t))
            return super().forward(x_t, t)

    models: dict[str, Any] = {"classifier": Bright(), "denoiser": Watched(10, 0.0)}
    settings: dict[str, Any] = {
        "respaced": 10,
        "levels": 2,
        "iterations": 60,
        "weight": 0.0,
        "refine": False,
    }
    answers = ACE(**settings, stop=0.8)(queries, **models)
    steps = answers.steps.tolist()
    assert bool(answers.flipped.all())
    assert steps[2] == 0 < steps[0] < steps[1] < 60
    assert torch.equal(answers.counterfactual[2], queries.images[2])
    assert sizes == [2] * (2 * steps[0]) + [1] * (2 * (steps[1] - steps[0]))
    # each iteration: K denoiser calls, the classifier behind them, a look at the stored image; a
    # last look; the verdict
    assert torch.equal(answers.forward, 4 * answers.steps + 2)
    assert torch.equal(answers.backward, 3 * answers.steps)
    fixed = ACE(**{**settings, "iterations": 40})(queries, **models)
    assert bool(fixed.flipped.all())
    assert fixed.steps.tolist() == [40] * 3
    assert fixed.forward.tolist() == [3 * 40 + 1] * 3


def test_stopping_asks_the_view_through_the_denoiser_too() -> None:
    """Stored images pass first where the denoiser darkens what it is given; the row goes on until
    both pass.
    """
    queries = dark()
    settings: dict[str, Any] = {
        "respaced": 10,
        "levels": 2,
        "iterations": 60,
        "weight": 0.0,
        "refine": False,
    }
    same, darker = (
        ACE(**settings, stop=0.8)(queries, classifier=Bright(), denoiser=TwoFaced(10, 0.0, shift))
        for shift in (0.0, -0.1)
    )
    assert bool((darker.steps >= same.steps + 5).all())
    assert bool(
        (
            darker.counterfactual.mean((1, 2, 3)) > same.counterfactual.mean((1, 2, 3)) + 5 / 255
        ).all()
    )


def test_checkpointing_changes_the_cost_only(
    diffusion: dict[str, Any], queries: ImageQueries
) -> None:
    settings: dict[str, Any] = {"respaced": 10, "levels": 3, "iterations": 4}
    plain, spared = (
        ACE(**settings, checkpoint=flag)(queries, **diffusion) for flag in (False, True)
    )
    assert torch.equal(plain.counterfactual, spared.counterfactual)
    assert torch.equal(spared.forward, plain.forward + 3 * 4)


def test_a_row_with_a_bad_gradient_ends_alone(
    diffusion: dict[str, Any], queries: ImageQueries, pick: Pick
) -> None:
    classifier, calls = diffusion["classifier"], []

    class Sick(nn.Module):
        classes = classifier.classes

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = classifier(images)
            if scores.requires_grad:
                calls.append(len(images))
                # row 1, in the third iteration only
                sick = torch.arange(len(images)) == (1 if len(calls) == 3 else -1)
                scores.register_hook(lambda grad: grad.masked_fill(sick[:, None], torch.inf))
            return scores

    method = ACE(respaced=10, levels=2, iterations=6, refine=False, weight=0.0)
    answers = method(queries, **{**diffusion, "classifier": Sick()})
    assert answers.steps.tolist() == [6, 2, 6, 6, 6, 6, 6, 6]
    assert answers.reasons[1] in (None, "non-finite gradient")
    two = ACE(respaced=10, levels=2, iterations=2, refine=False, weight=0.0)(queries, **diffusion)
    assert torch.equal(answers.counterfactual[1], two.counterfactual[1]), (
        "the row stands where it was"
    )
    others = [0, 2, 3, 4, 5, 6, 7]
    assert torch.equal(
        answers.counterfactual[others], method(pick(queries, others), **diffusion).counterfactual
    )


def test_settings_are_checked_and_shown() -> None:
    assert "levels=5" in repr(ACE())
    for wrong, message in [
        ({"kernel": 4}, "expected kernel odd, got 4"),
        ({"levels": 51}, "expected levels from 1 to 50, got 51"),
        ({"weight": "1e-3"}, "expected weight of type float, got '1e-3'"),
        ({"distance": "l3"}, "expected distance out of l1, l2, got 'l3'"),
        ({"refine": 1}, "expected refine of type bool, got 1"),
        ({"iterations": True}, "expected iterations of type int, got True"),
        ({"stop": float("nan")}, "expected stop from 0 to 1, got nan"),
    ]:
        settings: dict[str, Any] = wrong
        with pytest.raises(ValueError, match=message):
            ACE(**settings)
