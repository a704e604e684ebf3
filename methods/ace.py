"""ACE, Adversarial Counterfactual Explanations (Jeanneret et al., CVPR 2023): an attack through a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.contract import Answers, Budget, Queries, row_generators, row_noise, settle, stored_verdict
from methods.diffusion import Schedule, inpaint, purify, respace
from methods.settings import check_settings
from models.interfaces import Classifier, Denoiser


@dataclass(frozen=True, kw_only=True)
class ACE:
    """PGD on the image through classifier(denoise(noise(x'))), then inpainting of what hardly changed.

    respaced: steps that the denoiser's schedule is shortened to; levels: K (the paper's tau), how many of them x' is
    noised by and denoised from; step: of the attack, in 8-bit levels; distance, weight: lambda times the per-sample
    "l1" sum or "l2" norm of x' - x, in [0,1]; refine, gamma, kernel: inpaint afterwards, the mask's threshold, and the
    side of its maximum window (odd); checkpoint: K more denoiser calls an iteration, for less memory; stop: None for
    the paper's fixed iterations, else the p(target) at which a row is done: on the stored x' and on the last view of x'
    through the denoiser (the stored image alone passes early, by noise that refinement takes away again).

    Pixels live in [0,1] as in the public ACE, so that a step of 1 stays on the 8-bit grid; the denoiser sees [-1,1].
    """

    needs: ClassVar[tuple[str, ...]] = ("denoiser",)

    respaced: int = 50
    levels: int = 5
    iterations: int = 50
    step: float = 1.0
    distance: str = "l1"
    weight: float = 0.001
    refine: bool = True
    gamma: float = 0.15
    kernel: int = 15
    checkpoint: bool = False
    stop: float | None = None

    def __post_init__(self) -> None:
        check_settings(
            self,
            respaced=(1, inf),
            levels=(1, self.respaced),
            iterations=(1, inf),
            step=(0, 255),
            distance=("l1", "l2"),
            weight=(0, inf),
            gamma=(0, 1),
            kernel=(1, inf),
            stop=(0, 1),
        )
        if self.kernel % 2 == 0:
            raise ValueError(f"expected kernel odd, got {self.kernel}")

    def __call__(self, queries: Queries, *, classifier: Classifier, denoiser: Denoiser) -> Answers:
        """Counterfactuals: the refined image where it flips, else the pre-explanation where that does."""
        x, target = queries.images, queries.target
        schedule = respace(denoiser.alphas_cumprod, self.respaced)
        generators = row_generators(queries.seed)
        budget, everything = Budget.of(len(x)), torch.arange(len(x))

        pre, steps, reasons = self._attack(queries, schedule, generators, budget, classifier, denoiser)
        answer, mask = pre, torch.ones_like(x[:, :1])
        if self.refine:
            keep = keep_mask(x, pre, gamma=self.gamma, kernel=self.kernel)
            noise = row_noise(generators, (2 * self.levels, *x.shape[1:]), x.device)
            with torch.no_grad():
                refined = to_image(inpaint(denoiser, schedule, to_signal(x), to_signal(pre), keep, noise))
            refined = torch.where(keep, x, refined)  # to the last bit
            # Refinement may undo the flip: both candidates stay, and the better flipped one is the answer.
            (pre_flips, pre_p), (flips, p) = (stored_verdict(classifier, image, target) for image in (pre, refined))
            better = (flips | (~pre_flips & (p > pre_p)))[:, None, None, None]
            answer, mask = torch.where(better, refined, pre), torch.where(better, (~keep).to(x.dtype), mask)
            budget.spend(everything, forward=self.levels + 2)

        stored, flipped, why = settle(classifier, answer, queries, reasons, budget)
        return Answers(
            counterfactual=stored,
            flipped=flipped,
            steps=steps,
            forward=budget.forward,
            backward=budget.backward,
            reasons=why,
            mask=mask,
        )

    def _attack(
        self,
        queries: Queries,
        schedule: Schedule,
        generators: list[torch.Generator],
        budget: Budget,
        classifier: Classifier,
        denoiser: Denoiser,
    ) -> tuple[Tensor, Tensor, list[str]]:
        """The pre-explanation (B,3,H,W) in [0,1], the steps taken (B,), and why a row will have failed if it does.

        The pre-explanation is the last iterate; with `stop`, the iterate of highest stored p(target).
        """
        x, target = queries.images, queries.target
        active = torch.arange(len(x), device=x.device)
        x_pre, best, best_p = x.clone(), x.clone(), x.new_full((len(x),), -1.0)
        alive, turned = x.new_ones(len(x), dtype=torch.bool), x.new_zeros(len(x), dtype=torch.bool)
        seen = x.new_ones(len(x))  # p(target) through the denoiser; before the first look only the stored image counts
        steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)

        for iteration in range(self.iterations + 1):
            if self.stop is not None:
                flips, p = stored_verdict(classifier, x_pre[active], target[active])
                budget.spend(active, forward=1)
                better = p > best_p[active]
                best[active[better]], best_p[active[better]] = x_pre[active[better]], p[better]
                active = active[~(flips & (p > self.stop) & (seen[active] > self.stop)) & alive[active]]
            if iteration == self.iterations or not len(active):
                break

            x_a = x_pre[active].requires_grad_()
            noise = row_noise([generators[row] for row in active.tolist()], (self.levels, *x.shape[1:]), x.device)
            clean = to_image(purify(denoiser, schedule, to_signal(x_a), noise, checkpointed=self.checkpoint))
            log_p = classifier(clean).log_softmax(1)
            log_p_target = log_p.gather(1, target[active, None])[:, 0]
            loss = -log_p_target + self.weight * self._distance(x_a, x[active])
            (grad,) = torch.autograd.grad(loss.sum(), x_a)
            budget.spend(active, forward=self.levels * (2 if self.checkpoint else 1) + 1, backward=self.levels + 1)

            # A row whose gradient is not finite stands still from then on; no value is fetched from the device for it.
            alive[active] &= grad.isfinite().flatten(1).all(1)
            moved = (x_a.detach() - self.step / 255 * grad.sign()).clamp(0, 1)
            x_pre[active] = torch.where(alive[active, None, None, None], moved, x_pre[active])
            turned[active] = log_p.detach().argmax(1) == target[active]
            seen[active] = log_p_target.detach().exp()
            steps[active] += alive[active]

        why = [
            "non-finite gradient" if not ok else "flip lost in refinement" if was and self.refine else "not converged"
            for ok, was in zip(alive.tolist(), turned.tolist(), strict=True)
        ]
        return (x_pre if self.stop is None else best), steps.cpu(), why

    def _distance(self, x_pre: Tensor, x: Tensor) -> Tensor:
        """Per-sample distance, (B,): sums over the image, never over the batch, whose size must not weigh in."""
        change = (x_pre - x).flatten(1)
        return change.abs().sum(1) if self.distance == "l1" else torch.linalg.vector_norm(change, dim=1)


def to_signal(images: Tensor) -> Tensor:
    """[0,1] to the denoiser's [-1,1]."""
    return images * 2 - 1


def to_image(signal: Tensor) -> Tensor:
    """The denoiser's [-1,1] to [0,1]."""
    return (signal + 1) / 2


def keep_mask(x: Tensor, x_pre: Tensor, *, gamma: float, kernel: int) -> Tensor:
    """Where hardly anything changed nearby, (B,1,H,W) bool: ACE section 3.3.

    |x_pre - x| summed over channels, divided by its maximum over the image, maximum over kernel x kernel; below gamma.
    """
    change = (x_pre - x).abs().sum(1, keepdim=True)
    m = change / change.flatten(1).amax(1)[:, None, None, None].clamp_min(1e-12)  # no change at all: keep everything
    return F.max_pool2d(m, kernel, stride=1, padding=kernel // 2) < gamma
