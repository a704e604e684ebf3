"""The fast gradient sign method (Goodfellow et al. 2015): the cheapest adversarial example, made in
one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from counterfactory.methods.contract import (
    Budget,
    ImageAnswers,
    ImageQueries,
    settle,
    target_log_prob,
)
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """x' = clip(x + eps sign(d log p(target) / dx)): equation (1) of arXiv 1412.6572, towards the
    target class instead of away from the source class.

    eps: in 8-bit levels, 1/255 of the range.
    """

    name: ClassVar[str] = "fgsm"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ()

    eps: float = 8.0

    def __post_init__(self) -> None:
        check_settings(self, eps=(0, 255))

    def __call__(self, queries: ImageQueries, *, classifier: Classifier) -> ImageAnswers:
        """Return every row after one step; a row that already has its target is not changed."""
        x, target = queries.images, queries.target
        budget, reasons = (
            Budget.of(len(x)),
            [f"not flipped by one step of {self.eps:g}/255"] * len(x),
        )
        x_adv, steps = x.clone(), torch.zeros(len(x), dtype=torch.int64)

        going = (queries.source != target).nonzero()[:, 0]
        if len(going):
            x_g = x[going].requires_grad_()
            (grad,) = torch.autograd.grad(
                target_log_prob(classifier, x_g, target[going]).sum(), x_g
            )
            budget.spend(going, forward=1, backward=1)
            finite = grad.isfinite().flatten(1).all(1)
            for row in going[~finite].tolist():
                reasons[row] = "non-finite gradient"
            going, grad = going[finite], grad[finite]
            x_adv[going] = (x[going] + self.eps / 255 * grad.sign()).clamp(0, 1)
            steps[going.cpu()] = 1

        return settle(classifier, x_adv, queries, reasons, budget, steps=steps)
