"""DiVE (Rodriguez et al. 2021, arXiv 2103.10226): several counterfactuals of a query at once, each
in another direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from counterfactory.methods.contract import (
    Budget,
    ImageAnswers,
    ImageQueries,
    passes_stored,
    row_generators,
    row_noise,
    settle,
    target_log_prob,
)
from counterfactory.methods.parts.adam import Adam
from counterfactory.methods.parts.fisher import fisher_groups
from counterfactory.methods.parts.latents import start
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import (
    AttributeAutoencoder,
    Autoencoder,
    Classifier,
    Distractors,
)


@dataclass(frozen=True, kw_only=True)
class DiVE:
    """Joint Adam descent on k perturbations of the latent, which change the decision, stay near the
    query and differ in direction.

    A row's loss is the mean of its answers' cross-entropies to the target, plus three terms divided
    by the number of free coordinates of all its answers (the authors' code): pixel_weight * |x -
    x'| (mean over pixels, sum over channels, images in [-1,1]), latent_weight * |e|, and
    diversity_weight * cos(e_i, e_j)^2 over ordered pairs.

    groups: how the coordinates are divided into one group per answer: "fisher_spectral", by
    spectral clustering of their Fisher information; "random"; or "none", where all coordinates are
    free. mask: "keep": an answer moves only its own group (the authors' fisher_spectral); "hide":
    it moves all groups except its own (their fisher_spectral_inv and random). stop_share: a row is
    done when this share of its answers passes, the authors' rule for a batch. threshold:
    probability that the target must exceed, in addition to being the prediction. init: standard
    deviation of the first perturbations. residual: x' = clip(x + dec(z) - dec(z0)), which preserves
    what the autoencoder loses (False: x' = dec(z), the paper).

    Beyond the paper, off by default: smoothing: standard deviation of noise on the latent at which
    the gradient is computed; the noise is drawn again at every step, so that only a change that
    survives it counts. second_moment: Adam's second moment per "coordinate" (all coordinates move
    by similar amounts, whether they matter or not) or per "answer" (the step follows the gradient).
    """

    name: ClassVar[str] = "dive"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"

    answers: int = 8
    lr: float = 0.01
    max_steps: int = 20
    pixel_weight: float = 10.0
    latent_weight: float = 1.0
    diversity_weight: float = 1.0
    groups: str = "fisher_spectral"
    mask: str = "keep"
    init: float = 0.01
    stop_share: float = 0.9
    threshold: float = 0.0
    residual: bool = True
    smoothing: float = 0.0
    second_moment: str = "coordinate"

    def __post_init__(self) -> None:
        check_settings(
            self,
            answers=(1, inf),
            lr=(0, inf),
            max_steps=(0, inf),
            pixel_weight=(0, inf),
            latent_weight=(0, inf),
            diversity_weight=(0, inf),
            groups=("fisher_spectral", "random", "none"),
            mask=("keep", "hide"),
            init=(0, inf),
            stop_share=(0, 1),
            threshold=(0, 1),
            smoothing=(0, inf),
            second_moment=("coordinate", "answer"),
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the models that the method needs; Fisher information is computed over the
        distractors, never over a batch.
        """
        return (
            ("autoencoder", "distractors") if self.groups == "fisher_spectral" else ("autoencoder",)
        )

    def __call__(
        self,
        queries: ImageQueries,
        *,
        classifier: Classifier,
        autoencoder: Autoencoder | AttributeAutoencoder,
        distractors: Distractors | None = None,
    ) -> ImageAnswers:
        """Return B*k answers: the last iterate that flips, or where none flips the iterate of
        highest p(target).

        An answer is charged what it would cost alone. Fisher information is computed once for the
        models and is not charged.
        """
        k, x, all_queries = self.answers, queries.images, queries.repeated(self.answers)
        budget, reasons = Budget.of(len(x) * k), ["not converged"] * (len(x) * k)
        steps = torch.zeros(len(x), dtype=torch.int64)
        everything = torch.arange(len(x) * k, device=x.device)

        z0, image, calls = start(autoencoder, x, self.residual)
        budget.spend(everything, forward=calls)
        flat = z0.flatten(1)
        free = self._free(classifier, autoencoder, distractors, flat)
        generators = row_generators(queries.seed)
        e = self.init * row_noise(generators, (k, flat.shape[1]), x.device) * free
        adam = Adam.of(e)

        def images(rows: Tensor, e_rows: Tensor) -> Tensor:
            """Return x' (n*k,3,H,W) of some rows under their perturbations (n,k,D)."""
            z = (flat[rows, None] + e_rows).view(len(rows) * k, *z0.shape[1:])
            return image(rows.repeat_interleave(k), z)

        best, best_p = torch.zeros_like(e), x.new_full((len(x), k), -1.0)
        passed = torch.zeros_like(best_p, dtype=torch.bool)
        # A row that already has its target does not take part.
        active = (queries.source != queries.target).nonzero()[:, 0]
        for step in range(1, self.max_steps + 2):
            if not len(active):
                break
            # the active rows' answers
            of = (active[:, None] * k + torch.arange(k, device=x.device)).flatten()
            target = all_queries.target[of]
            e_n = e[active].requires_grad_()
            x_n = images(active, e_n)
            log_p = classifier(x_n).log_softmax(1)
            log_target = log_p.gather(1, target[:, None])[:, 0]
            budget.spend(of, forward=2)

            p, here = log_target.detach().exp(), log_p.detach().argmax(1) == target
            # Only images with the target as prediction are rounded and classified again.
            hoped = p.where(here, torch.full_like(p, -1.0))
            passes = passes_stored(
                classifier, x_n.detach(), target, hoped, self.threshold, of, budget
            ).view(-1, k)
            better = passes | (~passed[active] & (p.view(-1, k) > best_p[active]))
            best[active] = e_n.detach().where(better[..., None], best[active])
            best_p[active] = p.view(-1, k).where(better, best_p[active])
            passed[active] |= passes
            done = passes.sum(1) >= self.stop_share * k
            if step > self.max_steps or done.all():
                break

            if self.smoothing:  # the verdict is at the latent itself, the gradient at a noised one
                shake = row_noise(
                    [generators[row] for row in active.tolist()], e.shape[1:], x.device
                )
                x_n = images(active, e_n + self.smoothing * shake)
                log_target = target_log_prob(classifier, x_n, target)
                budget.spend(of.view(-1, k)[~done].flatten(), forward=2)
            away = (x_n - all_queries.images[of]).abs().mean((2, 3)).sum(1).view(-1, k).sum(1)
            near = self.pixel_weight * 2 * away + self.latent_weight * e_n.abs().sum((1, 2))
            near = near + self.diversity_weight * likeness(e_n)
            loss = -log_target.view(-1, k).mean(1) + near / free.sum()
            (grad,) = torch.autograd.grad(loss.sum(), e_n)
            budget.spend(of.view(-1, k)[~done].flatten(), backward=2)
            finite = grad.isfinite().flatten(1).all(1)
            for row in active[~done & ~finite].tolist():
                reasons[row * k : (row + 1) * k] = ["non-finite gradient"] * k
            active, grad = active[~done & finite], grad[~done & finite] * free
            square = grad.square()
            if self.second_moment == "answer":
                square = (square.sum(2, keepdim=True) / free.sum(1, keepdim=True)).expand_as(square)
            e[active] = e[active] - self.lr * adam.step(active, grad, step, square)
            steps[active.cpu()] += 1

        with torch.no_grad():
            there = (all_queries.source == all_queries.target)[:, None, None, None]
            tried = torch.where(
                there, all_queries.images, images(torch.arange(len(x), device=x.device), best)
            )
        budget.spend(everything, forward=1)
        return settle(
            classifier,
            tried,
            all_queries,
            reasons,
            budget,
            steps=steps.repeat_interleave(k),
            latent_before=flat.repeat_interleave(k, 0),
            latent_after=(flat[:, None] + best).flatten(0, 1),
        )

    def _free(self, classifier: Any, autoencoder: Any, bank: Any, flat: Tensor) -> Tensor:
        """Return which coordinates each answer may move, (k,D) of 0 and 1; flat: (B,D) latents.
        ValueError where Fisher information is needed and there are no distractors.
        """
        k, d = self.answers, flat.shape[1]
        if self.groups == "none":
            return flat.new_ones(k, d)
        if self.groups == "random":
            mixed = torch.randperm(d, generator=torch.Generator().manual_seed(0))
            group = torch.empty(d, dtype=torch.int64).scatter_(0, mixed, torch.arange(d) * k // d)
        elif bank is None:
            raise ValueError(
                "expected distractors, images that Fisher information is taken over, got none"
            )
        else:
            group = fisher_groups(classifier, autoencoder, bank, k, self.residual)
        own = group.to(flat.device) == torch.arange(k, device=flat.device)[:, None]
        return (own if self.mask == "keep" else ~own).to(flat)


def likeness(e: Tensor) -> Tensor:
    """Return the sum of cos^2 over ordered pairs of a row's perturbations, (n,); e: (n,k,D)."""
    direction = F.normalize(e, dim=2)
    cosines = (direction[:, :, None] * direction[:, None]).sum(3)
    return cosines.square().sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).square().sum(1)
