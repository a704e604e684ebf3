"""CADEX (arXiv 1906.10671), made for tables, on images: Adam on the few input values that its first
gradient picks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from counterfactory.methods.contract import Answers, Budget, Queries, passes_stored, settle
from counterfactory.methods.parts.adam import Adam
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier


@dataclass(frozen=True, kw_only=True)
class CADEX:
    """Adam descent on the cross-entropy to the target, over n values of the image, until the stored
    image passes.

    n: how many values (one channel of one pixel each) may move; threshold: probability of the
    target at which a row is done, 0 for the flip alone (the paper); lr: Adam's, in the image's
    range [0,1].

    The paper's constraints are, on an image, its range: a value that stands at the end of [0,1] to
    which its gradient points is not picked, and every step is clipped.
    """

    name: ClassVar[str] = "cadex"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ()

    n: int = 200
    threshold: float = 0.0
    lr: float = 0.01
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_settings(self, n=(1, inf), threshold=(0, 1), lr=(0, inf), max_steps=(0, inf))

    def __call__(self, queries: Queries, *, classifier: Classifier) -> Answers:
        """Sparse adversarial examples; the best try of a row that never passes is its iterate of
        highest p(target).
        """
        x, target = queries.images, queries.target
        budget, reasons = Budget.of(len(x)), ["not converged"] * len(x)
        steps = torch.zeros(len(x), dtype=torch.int64)
        active = torch.arange(len(x), device=x.device)
        x_adv, best, best_p = x.clone(), x.clone(), x.new_full((len(x),), -1.0)
        adam, picked = Adam.of(x), torch.zeros_like(x)

        for step in range(1, self.max_steps + 2):
            x_a = x_adv[active].requires_grad_()
            scores = classifier(x_a)
            log_p = scores.log_softmax(1).gather(1, target[active, None])[:, 0]
            p = log_p.detach().exp()
            budget.spend(active, forward=1)

            # Where the flip alone is asked for, any p does that is the highest: only those rows
            # need be looked at.
            flips = p.where(scores.detach().argmax(1) == target[active], -1.0)
            done = passes_stored(
                classifier, x_a.detach(), target[active], flips, self.threshold, active, budget
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
            if step == 1:
                picked[active] = strongest(grad, x[active], self.n)
            # Moments of what was not picked stay at 0.
            way = adam.step(active, grad * picked[active], step)
            x_adv[active] = (x_adv[active] + self.lr * way).clamp(0, 1)
            steps[active.cpu()] += 1

        return settle(classifier, best, queries, reasons, budget, steps=steps)


def strongest(grad: Tensor, x: Tensor, n: int) -> Tensor:
    """1 at each row's n values of largest ascent gradient, by magnitude, that have room to move;
    else 0.

    grad, x: (B,3,H,W), x in [0,1].
    """
    stuck = ((x <= 0) & (grad < 0)) | ((x >= 1) & (grad > 0))
    strength = grad.abs().masked_fill(stuck, 0).flatten(1)
    top = strength.topk(min(n, strength.shape[1]), dim=1)
    return (
        torch.zeros_like(strength).scatter_(1, top.indices, (top.values > 0).to(x.dtype)).view_as(x)
    )
