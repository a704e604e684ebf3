"""DiME: its guidance against a straight-line transcription, its ladder, what it costs, and
FastDiME's changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.contract import ImageQueries, to_8bit
from counterfactory.methods.dime import DiME

Pick = Callable[[ImageQueries, list[int]], ImageQueries]
SMALL: dict[str, Any] = {"respaced": 12, "tau": 5, "scales": [3.0]}


class VDenoiser(nn.Module):
    """The tiny network as one that predicts v = sqrt(a) eps - sqrt(1 - a) x0, turned into eps as a
    wrapper does.
    """

    def __init__(self, tiny: Any) -> None:
        super().__init__()
        self.tiny, self.alphas_cumprod = tiny, tiny.alphas_cumprod

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1).to(x_t.dtype)
        v, weight = self.tiny(x_t, t)
        return a.sqrt() * v + (1 - a).sqrt() * x_t, weight


def transcribed(
    image: Tensor,
    target: int,
    seed: int,
    *,
    classifier: Any,
    denoiser: Any,
    distance: Any,
    **settings: Any,
) -> Tensor:
    """The paper's algorithm 1 for one image and one scale, line by line, without any of our code;
    [-1,1].
    """
    N, tau = settings["respaced"], settings["tau"]
    lambda_c, lambda_p, lambda_l = settings["scales"][0], settings["perceptual"], settings["l1"]
    one_step, mask = settings.get("inner") == "one-step", settings.get("mask")
    abar_all = np.asarray(denoiser.alphas_cumprod, dtype=np.float64)
    kept = [round(j * (len(abar_all) - 1) / (N - 1)) for j in range(N)]
    abar = abar_all[kept]
    before = np.append(1.0, abar[:-1])
    beta = 1 - abar / before
    posterior = beta * (1 - before) / (1 - abar)
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(tuple(image.shape), generator=generator)

    def p_of(x_t: Tensor, t: int) -> tuple[Tensor, Tensor, Any]:
        eps, weight = (
            None if out is None else out[0] for out in denoiser(x_t[None], torch.tensor([kept[t]]))
        )
        assert eps is not None
        x0 = ((x_t - float(np.sqrt(1 - abar[t])) * eps) / float(np.sqrt(abar[t]))).clamp(-1, 1)
        mean = (
            float(np.sqrt(before[t]) * beta[t] / (1 - abar[t])) * x0
            + float(np.sqrt(1 - beta[t]) * (1 - before[t]) / (1 - abar[t])) * x_t
        )
        variance: Any = float(posterior[t])
        if weight is not None:
            low = np.log(posterior[max(t, 1)])  # guided-diffusion clips the first by the second
            variance = (weight * float(np.log(beta[t])) + (1 - weight) * float(low)).exp()
        return x0, mean, variance

    x = 2 * image - 1
    start = min(tau, len(abar) - 1)
    z = float(np.sqrt(abar[start])) * x + float(np.sqrt(1 - abar[start])) * noise()
    x_clean, keep = x.clone(), None
    for t in range(tau - 1, -1, -1):
        with torch.no_grad():
            x0, mean, variance = p_of(z, t)
        leaf = x_clean.clone().requires_grad_()
        scores = classifier(((leaf + 1) / 2)[None])[0]
        others = torch.stack([score for index, score in enumerate(scores) if index != target])
        odds = scores[target] - torch.logsumexp(others, 0)
        if settings.get("loss") == "log-prob":
            odds = scores[target] - torch.logsumexp(scores, 0)
        loss = -lambda_c * odds
        if lambda_p:
            loss = loss + lambda_p * distance(((leaf + 1) / 2)[None], image[None])[0]
        loss.backward()
        assert leaf.grad is not None
        grads = leaf.grad / (float(np.sqrt(abar[t])) if settings.get("rescale", True) else 1.0)
        grads = grads + lambda_l * torch.sign(z - x)
        with torch.no_grad():
            z = mean - variance * grads
            if t > 0:
                z = (
                    z
                    + (variance if isinstance(variance, Tensor) else torch.tensor(variance)).sqrt()
                    * noise()
                )
            x_clean = x0
            if not one_step and t > 0:
                x_clean = z.clone()
                for k in range(t - 1, -1, -1):
                    _, m, v = p_of(x_clean, k)
                    x_clean = m
                    if k > 0:
                        x_clean = (
                            m + (v if isinstance(v, Tensor) else torch.tensor(v)).sqrt() * noise()
                        )
            if mask is not None and tau - t > settings["warmup"]:
                change = ((x0 + 1) / 2 - image).abs().sum(0)
                change = change / change.max()
                half, near = settings["kernel"] // 2, torch.zeros_like(change)
                for r in range(change.shape[0]):
                    for c in range(change.shape[1]):
                        near[r, c] = change[
                            max(0, r - half) : r + half + 1, max(0, c - half) : c + half + 1
                        ].max()
                keep = near < mask
                x_clean = torch.where(keep, x, x_clean)
                if t > 0:
                    again = (
                        float(np.sqrt(abar[t - 1])) * x + float(np.sqrt(1 - abar[t - 1])) * noise()
                    )
                    z = torch.where(keep, again, z)
    return z if keep is None else torch.where(keep, x, z)


@pytest.fixture
def used(models: dict[str, nn.Module]) -> dict[str, Any]:
    return {
        name: models[name].requires_grad_(False)
        for name in ("classifier", "denoiser", "perceptual")
    }


@pytest.mark.parametrize("kind", ["epsilon", "learned", "v", "v-learned"])
@pytest.mark.parametrize(
    "settings",
    [
        {"l1": 0.0, "perceptual": 0.0},
        {"l1": 0.5, "perceptual": 0.0, "loss": "log-prob"},
        {"l1": 0.05, "perceptual": 300.0},
        {"l1": 0.3, "perceptual": 300.0, "inner": "one-step", "rescale": False},
        {"l1": 0.3, "perceptual": 0.0, "inner": "one-step", "mask": 0.6, "warmup": 2, "kernel": 3},
    ],
    ids=["class", "l1", "all", "one-step", "mask"],
)
def test_every_step_is_the_papers(
    used: dict[str, Any],
    queries: ImageQueries,
    pick: Pick,
    make_denoiser: Callable[..., Any],
    kind: str,
    settings: dict[str, Any],
) -> None:
    """tau grows by one at a time, so that a step that is off shows at its own length."""
    tiny = make_denoiser(learned="learned" in kind).eval().requires_grad_(False)
    models = {**used, "denoiser": VDenoiser(tiny) if kind.startswith("v") else tiny}
    rows = [0, 4]
    for tau in (1, 2, 3, 5):
        common = {**SMALL, "tau": tau, **settings}
        method = DiME(**common)
        got = method(
            pick(queries, rows), **{name: models[name] for name in ("classifier", *method.needs)}
        )
        for at, row in enumerate(rows):
            parts = {
                "classifier": models["classifier"],
                "denoiser": models["denoiser"],
                "distance": models["perceptual"],
            }
            z = transcribed(
                queries.images[row],
                int(queries.target[row]),
                int(queries.seed[row]),
                **parts,
                **common,
            )
            expected = to_8bit((z + 1) / 2)
            off = ((got.counterfactual[at] - expected).abs() > 0.5 / 255).float().mean()
            assert float(off) <= 0.005, (
                f"tau {tau}, row {row}: {float(off):.1%} of the pixels differ"
            )
            far = ((got.counterfactual[at] - expected).abs() > 1.5 / 255).sum()
            assert int(far) == 0, f"tau {tau}, row {row}: {far} pixels by more than rounding"


@pytest.mark.parametrize(
    "term", [{"l1": 0.5}, {"perceptual": 300.0}, {"rescale": False}, {"loss": "log-prob"}]
)
def test_every_term_of_the_guidance_counts(
    used: dict[str, Any], queries: ImageQueries, term: dict[str, Any]
) -> None:
    base = {**SMALL, "l1": 0.0, "perceptual": 0.0}
    without, with_it = (
        DiME(**{**base, **more})(queries, **used).counterfactual for more in ({}, term)
    )
    assert float((without != with_it).float().mean()) > 0.01


class Counted(nn.Module):
    """A denoiser that says that there is no noise, and counts."""

    def __init__(self, steps: int = 1000) -> None:
        super().__init__()
        self.calls: list[tuple[int, int]] = []
        self.alphas_cumprod = torch.cumprod(
            1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64), 0
        )

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
        assert not torch.is_grad_enabled(), "no gradient passes through the UNet"
        self.calls.append((int(t[0]), len(x_t)))
        return torch.zeros_like(x_t), None


class Brightness(nn.Module):
    """Class 1 by the mean of the image, so slowly that no scale here flips it."""

    classes = ("dark", "bright")

    def __init__(self, threshold: float = 0.99, slope: float = 1.0) -> None:
        super().__init__()
        self.threshold, self.slope = threshold, slope

    def forward(self, images: Tensor) -> Tensor:
        logit = self.slope * (images.flatten(1).mean(1) - self.threshold)
        return torch.stack([torch.zeros_like(logit), logit], 1)  # as a sigmoid head comes


def grey(rows: int, level: int = 100) -> ImageQueries:
    zeros = torch.zeros(rows, dtype=torch.int64)
    images = torch.full((rows, 3, 8, 8), level / 255)
    return ImageQueries(images=images, source=zeros, target=zeros + 1, seed=torch.arange(rows) + 3)


def test_the_papers_settings_cost_1830_unet_evaluations_a_scale() -> None:
    denoiser, method = Counted(), DiME(perceptual=0.0, scales=(8.0,))
    answers = method(grey(1), classifier=Brightness(), denoiser=denoiser)
    assert method.denoiser_calls == 1830
    assert len(denoiser.calls) == 1830
    # guidance, the try's verdict; the stored one's, its reason
    assert answers.forward.tolist() == [1830 + 60 + 1 + 2]
    assert answers.backward.tolist() == [60]
    assert answers.steps.tolist() == [60]
    assert answers.reasons == ["not converged"]
    assert denoiser.calls[0][0] == round(59 * 999 / 199), "the first call is at the noise of tau"


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({"tau": 1}, 1),
        ({"tau": 6}, 6 + 5 + 4 + 3 + 2 + 1),
        ({"tau": 6, "guided": 2}, 6 + 5),
        ({"tau": 6, "guided": 0}, 6),
        ({"tau": 6, "inner": "one-step"}, 6),
    ],
)
def test_what_a_scale_costs(settings: dict[str, Any], calls: int) -> None:
    denoiser, method = Counted(40), DiME(respaced=20, scales=(5.0,), perceptual=0.0, **settings)
    answers = method(grey(2), classifier=Brightness(), denoiser=denoiser)
    guided = settings.get("guided", settings["tau"])
    assert method.denoiser_calls == calls == len(denoiser.calls)
    assert answers.forward.tolist() == [calls + guided + 1 + 2] * 2
    assert answers.backward.tolist() == [guided] * 2


def test_a_perceptual_distance_costs_a_look_and_a_way_back_a_step(
    used: dict[str, Any], queries: ImageQueries
) -> None:
    answers = DiME(**SMALL, perceptual=1.0)(queries, **used)
    fails = torch.tensor([reason is not None for reason in answers.reasons]).long()
    assert torch.equal(answers.forward, 15 + 2 * 5 + 1 + 1 + fails)
    assert answers.backward.tolist() == [2 * 5] * 8


def test_the_ladder_takes_rows_that_have_not_flipped_from_the_same_noise() -> None:
    """Four rows, ever further from flipping: who flips leaves, and who stays starts from the noise
    it started from.
    """
    starts: dict[int, list[Tensor]] = {}

    class Watched(Counted):
        def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
            if int(t[0]) == first:
                starts.setdefault(len(starts), []).append(x_t.clone())
            return super().forward(x_t, t)

    queries = grey(4)
    for row, level in enumerate((150, 120, 90, 20)):
        queries.images[row] = level / 255
    denoiser = Watched(40)
    method = DiME(
        respaced=40, tau=10, scales=(0.0, 10.0, 200.0), perceptual=0.0, l1=0.0, inner="one-step"
    )
    first = 9
    classifier = Brightness(threshold=0.52, slope=400.0)
    answers = method(queries, classifier=classifier, denoiser=denoiser)
    sizes = [len(starts[scale][0]) for scale in starts]
    assert sizes[0] == 4
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 3
    taken = (answers.steps // 10).tolist()
    assert taken == [1, 2, 3, 3], "the first row flips by itself, the second at the weak scale"
    assert bool(answers.flipped.all())
    for scale in (1, 2):
        still = [row for row in range(4) if taken[row] > scale]
        assert torch.equal(starts[scale][0], starts[0][0][still])
    alone = DiME(respaced=40, tau=10, scales=(200.0,), perceptual=0.0, l1=0.0, inner="one-step")
    assert bool(alone(queries, classifier=classifier, denoiser=Counted(40)).flipped[3])


def test_a_row_that_no_scale_flips_keeps_its_best_try(
    used: dict[str, Any], queries: ImageQueries
) -> None:
    """Whatever the order of the scales, the try of highest p(target) is the answer."""
    settings: dict[str, Any] = {"respaced": 12, "tau": 3, "l1": 0.0, "perceptual": 0.0}
    classifier = used["classifier"]
    ladder = DiME(**settings, scales=(0.5, 0.0, 0.25))(queries, **used)
    single = DiME(**settings, scales=(0.5,))(queries, **used)
    stay = ~ladder.flipped
    assert bool(stay.any())

    def p(images: Tensor) -> Tensor:
        scores: Tensor = classifier(images)
        return scores.softmax(1).gather(1, queries.target[:, None])[:, 0]

    assert bool((p(ladder.counterfactual)[stay] >= p(single.counterfactual)[stay]).all())
    assert torch.equal(ladder.counterfactual[single.flipped], single.counterfactual[single.flipped])


@pytest.mark.parametrize("inner", ["full", "one-step"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_batch_is_its_rows(
    used: dict[str, Any],
    queries: ImageQueries,
    pick: Pick,
    make_denoiser: Callable[..., Any],
    inner: str,
    learned: bool,
) -> None:
    models = {**used, "denoiser": make_denoiser(learned=learned).eval()}
    method = DiME(
        respaced=12,
        tau=4,
        scales=(1.0, 4.0, 20.0),
        perceptual=50.0,
        inner=inner,
        mask=0.5,
        kernel=3,
    )
    whole = method(queries, **models)
    assert len(set(whole.steps.tolist())) > 1, "rows leave the ladder at different scales"
    for row in range(len(queries)):
        alone = method(pick(queries, [row]), **models)
        assert torch.equal(alone.counterfactual[0], whole.counterfactual[row])
        assert (alone.steps[0], alone.forward[0]) == (whole.steps[row], whole.forward[row])
        assert alone.reasons[0] == whole.reasons[row]


def test_a_masked_answer_is_the_query_outside_its_mask(
    used: dict[str, Any], queries: ImageQueries
) -> None:
    settings: dict[str, Any] = {
        **SMALL,
        "scales": [20.0],
        "perceptual": 0.0,
        "inner": "one-step",
        "kernel": 1,
    }
    answers = DiME(**settings, mask=0.4, warmup=2)(queries, **used)
    assert answers.mask is not None
    kept = (answers.mask == 0).expand_as(queries.images)
    assert 0.05 < float(kept.float().mean()) < 0.95
    assert torch.equal(answers.counterfactual[kept], queries.images[kept])
    assert DiME(**settings)(queries, **used).mask is None


def test_both_heads_of_a_binary_decision_guide_alike() -> None:
    """A sigmoid's (0, logit) towards class 0, where the target's score is a constant, and a softmax
    of its halves.
    """

    class Halves(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            logit = super().forward(images)[:, 1]
            return (
                torch.stack([-logit / 2, logit / 2], 1) + images.flatten(1).sum(1)[:, None]
            )  # no probability's matter

    bright = grey(2, 200)
    down = ImageQueries(
        images=bright.images, source=bright.target, target=bright.source, seed=bright.seed
    )
    method = DiME(respaced=20, tau=4, scales=(100.0,), perceptual=0.0, l1=0.0)
    one, other = (
        method(down, classifier=kind(0.1, 40.0), denoiser=Counted(40))
        for kind in (Brightness, Halves)
    )
    up = method(bright, classifier=Brightness(0.99, 40.0), denoiser=Counted(40))
    torch.testing.assert_close(one.counterfactual, other.counterfactual, atol=1.1 / 255, rtol=0)
    assert bool(
        (one.counterfactual.mean((1, 2, 3)) < up.counterfactual.mean((1, 2, 3)) - 5 / 255).all()
    )


def test_a_row_with_a_bad_gradient_ends_alone(
    used: dict[str, Any], queries: ImageQueries, pick: Pick
) -> None:
    classifier, calls = used["classifier"], []

    class Sick(nn.Module):
        classes = classifier.classes

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = classifier(images)
            if scores.requires_grad:
                calls.append(len(images))
                # row 1, in the third step only
                sick = torch.arange(len(images)) == (1 if len(calls) == 3 else -1)
                scores.register_hook(lambda grad: grad.masked_fill(sick[:, None], torch.inf))
            return scores

    method = DiME(**{**SMALL, "scales": [1.0, 10.0]}, perceptual=0.0)
    answers = method(queries, **{**used, "classifier": Sick()})
    assert answers.steps[1] == 2, "and takes no part in the next scale"
    assert answers.reasons[1] == "non-finite gradient"
    assert torch.equal(answers.counterfactual[1], queries.images[1]), "it has no try but the query"
    others = [0, 2, 3, 4, 5, 6, 7]
    assert torch.equal(
        answers.counterfactual[others], method(pick(queries, others), **used).counterfactual
    )


def test_it_asks_for_a_perceptual_model_where_that_weighs_something() -> None:
    assert DiME().needs == ("denoiser", "perceptual")
    assert DiME(perceptual=0.0).needs == ("denoiser",)


def test_settings_are_checked_and_shown() -> None:
    assert "tau=60" in repr(DiME())
    for wrong, message in [
        ({"kernel": 4}, "expected kernel odd, got 4"),
        ({"tau": 201}, "expected tau from 1 to 200, got 201"),
        ({"scales": 8.0}, "expected scales as a list of float, got 8.0"),
        ({"scales": []}, r"expected scales as a list of float, got \[\]"),
        ({"scales": [8.0, "10"]}, "expected scales of type float, got '10'"),
        ({"scales": [8.0, -1.0]}, "expected scales from 0 to inf, got -1.0"),
        ({"inner": "two-step"}, "expected inner out of full, one-step, got 'two-step'"),
        ({"guided": 61}, "expected guided from 0 to 60, got 61"),
    ]:
        settings: dict[str, Any] = wrong
        with pytest.raises(ValueError, match=message):
            DiME(**settings)
