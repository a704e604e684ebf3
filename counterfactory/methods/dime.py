"""DiME, Diffusion Models for Counterfactual Explanations (Jeanneret et al., ACCV 2022): guided
denoising of a noised x.

Where the paper leaves a choice, this file follows the authors' code
(github.com/guillaumejs2403/DiME, commit 46acad0). The one-step estimate and the mask follow the
code of FastDiME (Weng et al., ECCV 2024; github.com/ppegiosk/FastDiME_CelebA).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from counterfactory.methods.contract import (
    Budget,
    ImageAnswers,
    ImageQueries,
    row_generators,
    row_noise,
    settle,
    stored_verdict,
)
from counterfactory.methods.parts.diffusion import (
    Schedule,
    keep_mask,
    p_mean_deviation,
    p_step,
    q_sample,
    respace,
    to_image,
    to_signal,
)
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier, Denoiser, PerceptualDistance


@dataclass(frozen=True, kw_only=True)
class DiME:
    """Noising of x, then step-by-step denoising; each step's mean is shifted against the gradient
    of a loss at a clean estimate.

    respaced: number of steps that the denoiser's schedule is shortened to. tau: how many of them x
    is noised by. scales: weights of the classifier's loss (the paper's lambda_c), tried in turn on
    the rows that the previous scale did not flip. l1, perceptual: weights of the distances to x
    (lambda_l and lambda_p). loss: the classifier's loss, from the target's log-odds ("logit"; with
    two classes the sigmoid's logit, as in the paper) or its log-probability ("log-prob").

    inner: how the clean estimate of x_t is made: "full" denoises x_t through all remaining steps,
    "one-step" uses the estimate of the current step (FastDiME). rescale: divide gradients at the
    clean estimate by sqrt(alpha_bar); FastDiME does not. guided: number of first steps that are
    guided; None: all. mask: None, or a share of the largest change: after `warmup` steps, pixels
    that differ from x by less are replaced by x, noised to the same level (FastDiME). kernel: the
    side of the mask's maximum window (odd).

    The pixels of the denoiser and of the losses are in [-1,1], as in the authors' code. Their
    perceptual distance is the mean squared difference of VGG-19's features after relu3_4
    (counterfactory.models.wrapping.perceptual.VGG19Distance). Another distance has another scale
    and needs another weight.
    """

    name: ClassVar[str] = "dime"
    version: ClassVar[int] = 2
    access: ClassVar[str] = "gradient"

    respaced: int = 200
    tau: int = 60
    scales: tuple[float, ...] = (8.0, 10.0, 15.0)
    l1: float = 0.05
    perceptual: float = 30.0
    loss: str = "logit"
    inner: str = "full"
    rescale: bool = True
    guided: int | None = None
    mask: float | None = None
    warmup: int = 0
    kernel: int = 5

    def __post_init__(self) -> None:
        check_settings(
            self,
            respaced=(1, inf),
            tau=(1, self.respaced),
            scales=(0, inf),
            l1=(0, inf),
            perceptual=(0, inf),
            loss=("logit", "log-prob"),
            inner=("full", "one-step"),
            guided=(0, self.tau),
            mask=(0, 1),
            warmup=(0, inf),
            kernel=(1, inf),
        )
        if self.kernel % 2 == 0:
            raise ValueError(f"expected kernel odd, got {self.kernel}")

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the models that the method needs; the perceptual model only where its weight is
        not 0.
        """
        return ("denoiser", "perceptual") if self.perceptual else ("denoiser",)

    def __call__(
        self,
        queries: ImageQueries,
        *,
        classifier: Classifier,
        denoiser: Denoiser,
        perceptual: PerceptualDistance | None = None,
    ) -> ImageAnswers:
        """Return counterfactuals: for each row the first try that flips, else the try of highest
        p(target).
        """
        x, target = queries.images, queries.target
        schedule = respace(denoiser.alphas_cumprod, self.respaced)
        generators, budget = row_generators(queries.seed), Budget.of(len(x))
        guide = Guide(self, schedule, classifier, perceptual)
        first = row_noise(generators, x.shape[1:], x.device)  # the same for every scale

        active = torch.arange(len(x), device=x.device)
        best, best_p, mask = x.clone(), x.new_full((len(x),), -1.0), torch.ones_like(x[:, :1])
        steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        bad = x.new_zeros(len(x), dtype=torch.bool)
        for scale in self.scales:
            if not len(active):
                break
            x_a, goal, rows = (
                x[active],
                target[active],
                [generators[row] for row in active.tolist()],
            )
            tried, keep, taken, alive = self._denoise(
                x_a, goal, first[active], scale, schedule, rows, guide, denoiser
            )
            flips, p = stored_verdict(classifier, tried, goal)
            looks = self._guided * (2 if self.perceptual else 1)
            budget.spend(active, forward=self.denoiser_calls + looks + 1, backward=looks)
            steps[active] += taken
            better = alive & (flips | (p > best_p[active]))
            where = active[better]
            best[where], best_p[where], mask[where] = (
                tried[better],
                p[better],
                (~keep[better]).to(x.dtype),
            )
            bad[active] = ~alive
            active = active[alive & ~flips]

        reasons = ["non-finite gradient" if sick else "not converged" for sick in bad.tolist()]
        return settle(
            classifier,
            best,
            queries,
            reasons,
            budget,
            steps=steps,
            mask=None if self.mask is None else mask,
        )

    @property
    def _guided(self) -> int:
        return self.tau if self.guided is None else self.guided

    @property
    def denoiser_calls(self) -> int:
        """Return the denoiser calls of one row at one scale: tau, and for `full` also the calls
        that make x_t clean for each guided step but the first.
        """
        return self.tau + (
            sum(self.tau - j for j in range(1, self._guided)) if self.inner == "full" else 0
        )

    @torch.no_grad()
    def _denoise(
        self,
        x: Tensor,
        target: Tensor,
        first: Tensor,
        scale: float,
        schedule: Schedule,
        generators: list[torch.Generator],
        guide: Guide,
        denoiser: Denoiser,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the result of algorithm 1 at one scale: the image in [0,1], where x was kept
        (B,1,H,W), the guided steps of each row (B,), and whether its gradients were always finite
        (B,).
        """

        def draw() -> Tensor:
            return row_noise(generators, x.shape[1:], x.device)

        signal = to_signal(x)
        # Noised to level tau as in the authors' code: one level above the first denoised level, or
        # the last level where there is none above. The first gradient is at x itself.
        start = min(self.tau, self.respaced - 1)
        x_t, clean = q_sample(schedule, signal, start, first), signal
        keep = torch.zeros_like(x[:, :1], dtype=torch.bool)
        alive, taken = x.new_ones(len(x), dtype=torch.bool), torch.zeros_like(target)
        for done, i in enumerate(reversed(range(self.tau)), 1):
            x0, mean, deviation = p_mean_deviation(denoiser, schedule, x_t, i)
            if done <= self._guided:
                grad = guide(clean, x_t, signal, target, scale, i)
                alive &= grad.isfinite().flatten(1).all(1)
                taken += alive
                # A row whose gradient is not finite continues without guidance, and its result is
                # discarded.
                mean = mean - deviation**2 * grad.where(
                    alive[:, None, None, None], torch.zeros_like(grad)
                )
            x_t = mean + deviation * draw() if i else mean

            if self.inner == "one-step":
                clean = x0
            elif done < self._guided:
                clean = x_t
                for k in reversed(range(i)):
                    clean = p_step(denoiser, schedule, clean, k, draw() if k else None)
            if self.mask is not None and done > self.warmup:
                keep = keep_mask(x, to_image(x0), gamma=self.mask, kernel=self.kernel)
                clean = torch.where(keep, signal, clean)
                x_t = (
                    torch.where(keep, q_sample(schedule, signal, i - 1, draw()), x_t) if i else x_t
                )
        return torch.where(keep, x, to_image(x_t).clamp(0, 1)), keep, taken, alive


@dataclass(frozen=True)
class Guide:
    """The gradient that shifts the mean of each denoising step."""

    settings: DiME
    schedule: Schedule
    classifier: Classifier
    perceptual: PerceptualDistance | None

    def __call__(
        self, clean: Tensor, x_t: Tensor, x: Tensor, target: Tensor, scale: float, i: int
    ) -> Tensor:
        """Return the gradient, shaped like x_t: lambda_c and lambda_p times the gradients at the
        clean estimate, plus lambda_l times the gradient of |x_t - x| at x_t itself, as in the
        authors' code.

        All images are in [-1,1]; i: the level of x_t. No gradient passes through the denoiser:
        because x_t = sqrt(alpha_bar) x_0 + noise, a gradient at the clean estimate is multiplied by
        1 / sqrt(alpha_bar) at x_t.
        """
        settings, image = self.settings, to_image(x)
        with torch.enable_grad():
            leaf = clean.detach().requires_grad_()
            loss = scale * self._class_loss(self.classifier(to_image(leaf)), target)
            if self.perceptual is not None and settings.perceptual:
                loss = loss + settings.perceptual * self.perceptual(to_image(leaf), image)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
        if settings.rescale:
            grad = grad / sqrt(self.schedule.alpha_bar[i])
        return grad + settings.l1 * (x_t - x).sign()

    def _class_loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the classifier's loss (B,), lower where the target is more likely."""
        log_p = scores.log_softmax(1)
        this = log_p.gather(1, target[:, None])[:, 0]
        if self.settings.loss == "log-prob":
            return -this
        others = log_p.scatter(1, target[:, None], -inf).logsumexp(1)
        return others - this
