"""Projected gradient descent on pixels (Madry et al. 2018), the adversarial control: it flips, and
explains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch

from counterfactory.methods.contract import (
    Answers,
    Budget,
    Queries,
    passes_stored,
    settle,
    target_log_prob,
)
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier


@dataclass(frozen=True, kw_only=True)
class PixelPGD:
    """Sign ascent on the target's log-probability inside an l_inf ball, until the stored image
    passes a threshold.

    step, eps: in 8-bit levels, 1/255 of the range; threshold: as the method that this one is the
    control of.
    """

    name: ClassVar[str] = "pixel-pgd"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ()

    threshold: float = 0.75
    step: float = 1.0
    eps: float = 16.0
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_settings(self, threshold=(0, 1), step=(0, 255), eps=(0, 255), max_steps=(0, inf))

    def __call__(self, queries: Queries, *, classifier: Classifier) -> Answers:
        """Adversarial examples; the best try of a row that never passes is its iterate of highest
        p(target).
        """
        x, target = queries.images, queries.target
        budget, reasons = Budget.of(len(x)), ["not converged"] * len(x)
        steps = torch.zeros(len(x), dtype=torch.int64)
        low, high = (x - self.eps / 255).clamp(min=0), (x + self.eps / 255).clamp(max=1)
        active = torch.arange(len(x), device=x.device)
        x_adv, best, best_p = x.clone(), x.clone(), x.new_full((len(x),), -1.0)

        for step in range(1, self.max_steps + 2):
            x_a = x_adv[active].requires_grad_()
            log_p = target_log_prob(classifier, x_a, target[active])
            p = log_p.detach().exp()
            budget.spend(active, forward=1)

            done = passes_stored(
                classifier, x_a.detach(), target[active], p, self.threshold, active, budget
            )
            better = done | (p > best_p[active])
            best[active[better]], best_p[active[better]] = x_a.detach()[better], p[better]
            going = ~done
            if step > self.max_steps or not going.any():
                break

            (grad,) = torch.autograd.grad(log_p.sum(), x_a)
            budget.spend(active[going], backward=1)
            finite = grad.isfinite().flatten(1).all(1)
            for row in active[going & ~finite].tolist():
                reasons[row] = "non-finite gradient"
            active, grad = active[going & finite], grad[going & finite]
            if not len(active):
                break
            x_adv[active] = (x_adv[active] + self.step / 255 * grad.sign()).clamp(
                low[active], high[active]
            )
            steps[active.cpu()] += 1

        return settle(classifier, best, queries, reasons, budget, steps=steps)
