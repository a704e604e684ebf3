"""CADEX (arXiv 1906.10671), a method for tables, applied to images: Adam on the few input values
that the first gradient selects.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from counterfactory.methods.contract import Budget, ImageAnswers, ImageQueries
from counterfactory.methods.parts.adam import Adam
from counterfactory.methods.parts.ascent import Ascent
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier


@dataclass(frozen=True, kw_only=True)
class CADEX:
    """Adam descent on the cross-entropy to the target, over n values of the image, until the stored
    image passes.

    n: how many values may change (a value is one channel of one pixel). threshold: probability of
    the target at which a row is done; 0 requires only the flip (the paper). lr: Adam's learning
    rate, in the image's range [0,1].

    The paper's constraints become the image's range: a value at one end of [0,1] is not selected
    where the step would leave the range, and every step is clipped.
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

    def __call__(self, queries: ImageQueries, *, classifier: Classifier) -> ImageAnswers:
        """Return sparse adversarial examples; for a row that never passes, the iterate of highest
        p(target).
        """
        x = queries.images
        x_adv, adam, picked = x.clone(), Adam.of(x), torch.zeros_like(x)
        ascent = Ascent(
            queries=queries,
            classifier=classifier,
            budget=Budget.of(len(x)),
            threshold=self.threshold,
            everyone=True,
            calls=1,
        )
        for step in ascent.iterations(self.max_steps):
            x_n = x_adv[ascent.active].requires_grad_()
            (grad,) = ascent.gradients(ascent.judge(x_n), x_n)
            rows = ascent.active
            if step == 1:
                picked[rows] = strongest(grad, x[rows], self.n)
            # The moments of values that were not picked stay at 0.
            way = adam.step(rows, grad * picked[rows], step)
            x_adv[rows] = (x_adv[rows] + self.lr * way).clamp(0, 1)
        return ascent.answers()


def strongest(grad: Tensor, x: Tensor, n: int) -> Tensor:
    """Return 1 at each row's n values of largest absolute gradient that can still move, else 0.

    grad, x: (B,3,H,W), grad of the ascent, x in [0,1].
    """
    stuck = ((x <= 0) & (grad < 0)) | ((x >= 1) & (grad > 0))
    strength = grad.abs().masked_fill(stuck, 0).flatten(1)
    top = strength.topk(min(n, strength.shape[1]), dim=1)
    return (
        torch.zeros_like(strength).scatter_(1, top.indices, (top.values > 0).to(x.dtype)).view_as(x)
    )
