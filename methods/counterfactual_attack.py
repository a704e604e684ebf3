"""Counterfactual Attacks (arXiv 2504.15479): an adversarial attack on an image's latent instead of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from methods.contract import Answers, Budget, Queries, passes_stored, settle, stored_verdict, target_log_prob
from methods.settings import check_settings
from models.interfaces import Autoencoder, Classifier

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's, as torch has them


@dataclass(frozen=True, kw_only=True)
class CounterfactualAttack:
    """Adam ascent on the target's probability over the latent, until the stored image passes a threshold.

    threshold: probability of the target at which a row is done; objective: what is ascended, "probability" (the paper)
    or "log_probability" (does not saturate); distance_weight: of -||z - z0||^2 added to the objective (0: the paper);
    residual: x' = clip(x + dec(z) - dec(z0)), which keeps what the autoencoder loses (False: x' = dec(z), the paper);
    second_moment: Adam's, one per "coordinate" (the paper: latents move alike, whether they matter or not) or one per
    "row" (the step follows the gradient); shrink: bisections from z back towards z0 for the smallest change that still
    passes (0: the paper).
    """

    needs: ClassVar[tuple[str, ...]] = ("autoencoder",)

    threshold: float = 0.75
    lr: float = 0.01
    max_steps: int = 500
    objective: str = "probability"
    distance_weight: float = 0.0
    residual: bool = True
    second_moment: str = "coordinate"
    shrink: int = 0

    def __post_init__(self) -> None:
        check_settings(
            self,
            threshold=(0, 1),
            lr=(0, inf),
            max_steps=(0, inf),
            objective=("probability", "log_probability"),
            distance_weight=(0, inf),
            second_moment=("coordinate", "row"),
            shrink=(0, inf),
        )

    def __call__(self, queries: Queries, *, classifier: Classifier, autoencoder: Autoencoder) -> Answers:
        """Counterfactuals by latent ascent; a row that never passes keeps its latent of highest p(target)."""
        x, target = queries.images, queries.target
        budget, reasons = Budget.of(len(x)), ["not converged"] * len(x)
        steps = torch.zeros(len(x), dtype=torch.int64)

        with torch.no_grad():
            z0 = autoencoder.encode(x)
            x0 = autoencoder.decode(z0)
        active = torch.arange(len(x), device=x.device)
        budget.spend(active, forward=2)
        z, m, v = z0.clone(), torch.zeros_like(z0), torch.zeros_like(z0)
        best, best_p, passed = z0.clone(), x.new_full((len(x),), -1.0), x.new_zeros(len(x), dtype=torch.bool)

        for step in range(1, self.max_steps + 2):
            # Rows that are done have left: the models see the active ones only.
            z_a = z[active].requires_grad_()
            image = self._image(x[active], x0[active], autoencoder.decode(z_a))
            log_p = target_log_prob(classifier, image, target[active])
            p = log_p.detach().exp()
            budget.spend(active, forward=2)

            # Rounding inside the ascent would blow float noise up to 8-bit levels: only the verdict sees stored images.
            done = passes_stored(classifier, image.detach(), target[active], p, self.threshold, active, budget)
            better = done | (p > best_p[active])
            best[active[better]], best_p[active[better]] = z_a.detach()[better], p[better]
            passed[active[done]] = True
            going = ~done
            if step > self.max_steps or not going.any():
                break

            ascent = log_p.exp() if self.objective == "probability" else log_p
            ascent = ascent - self.distance_weight * (z_a - z0[active]).square().flatten(1).sum(1)
            (grad,) = torch.autograd.grad(ascent.sum(), z_a)
            budget.spend(active[going], backward=2)

            finite = grad.isfinite().flatten(1).all(1)
            for row in active[going & ~finite].tolist():
                reasons[row] = "non-finite gradient"
            active, grad = active[going & finite], grad[going & finite]
            if not len(active):
                break
            # Adam (Kingma & Ba 2015, algorithm 1), each row with its own moments.
            m[active] = BETA1 * m[active] + (1 - BETA1) * grad
            square = grad.square()
            if self.second_moment == "row":
                square = square.flatten(1).mean(1).view(-1, *(1,) * (z.ndim - 1)).expand_as(square)
            v[active] = BETA2 * v[active] + (1 - BETA2) * square
            m_hat, v_hat = m[active] / (1 - BETA1**step), v[active] / (1 - BETA2**step)
            z[active] = z[active] + self.lr * m_hat / (v_hat.sqrt() + EPS)
            steps[active.cpu()] += 1

        if self.shrink:
            best = self._shrunk(best, passed, z0, x0, queries, budget, classifier, autoencoder)
        with torch.no_grad():
            image = self._image(x, x0, autoencoder.decode(best))
        budget.spend(torch.arange(len(x)), forward=1)
        stored, flipped, why = settle(classifier, image, queries, reasons, budget)
        return Answers(
            counterfactual=stored,
            flipped=flipped,
            steps=steps,
            forward=budget.forward,
            backward=budget.backward,
            reasons=why,
            latent_before=z0.flatten(1),
            latent_after=best.flatten(1),
        )

    def _image(self, x: Tensor, x0: Tensor, decoded: Tensor) -> Tensor:
        """x': the decoded latent, or the query moved by what the decoded latent moved."""
        # The difference first, so that z = z0 gives x to the last bit.
        return (x + (decoded - x0)).clamp(0, 1) if self.residual else decoded

    @torch.no_grad()
    def _shrunk(
        self,
        z: Tensor,
        passed: Tensor,
        z0: Tensor,
        x0: Tensor,
        queries: Queries,
        budget: Budget,
        classifier: Classifier,
        autoencoder: Autoencoder,
    ) -> Tensor:
        """For rows that passed, the end of a bisection on [z0, z] whose upper end always passes."""
        rows = passed.nonzero()[:, 0]
        if not len(rows):
            return z
        x, target = queries.images[rows], queries.target[rows]
        across = (-1,) + (1,) * (z.ndim - 1)
        low, high = x.new_zeros(len(rows)), x.new_ones(len(rows))
        for _ in range(self.shrink):
            middle = (low + high) / 2
            z_m = torch.lerp(z0[rows], z[rows], middle.view(across))
            flipped, p_m = stored_verdict(classifier, self._image(x, x0[rows], autoencoder.decode(z_m)), target)
            passes = flipped & (p_m > self.threshold)
            low, high = torch.where(passes, low, middle), torch.where(passes, middle, high)
            budget.spend(rows, forward=2)
        shrunk = z.clone()
        shrunk[rows] = torch.lerp(z0[rows], z[rows], high.view(across))
        return shrunk
