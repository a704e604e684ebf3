"""Projected gradient descent on pixels (Madry et al. 2018): the adversarial control, which flips
the decision and explains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from counterfactory.methods.contract import Budget, ImageAnswers, ImageQueries
from counterfactory.methods.parts.ascent import Ascent
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier


@dataclass(frozen=True, kw_only=True)
class PixelPGD:
    """Sign ascent on the target's log-probability inside an l_inf ball, until the stored image
    passes a threshold.

    step, eps: in 8-bit levels, 1/255 of the range. threshold: the same as in the method that
    PixelPGD is the control of.
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

    def __call__(self, queries: ImageQueries, *, classifier: Classifier) -> ImageAnswers:
        """Return adversarial examples; for a row that never passes, the iterate of highest
        p(target).
        """
        x = queries.images
        low, high = (x - self.eps / 255).clamp(min=0), (x + self.eps / 255).clamp(max=1)
        x_adv = x.clone()
        ascent = Ascent(
            queries=queries,
            classifier=classifier,
            budget=Budget.of(len(x)),
            threshold=self.threshold,
            predicted=False,
            everyone=True,
            calls=1,
        )
        for _ in ascent.iterations(self.max_steps):
            x_n = x_adv[ascent.active].requires_grad_()
            (grad,) = ascent.gradients(ascent.judge(x_n), x_n)
            rows = ascent.active
            x_adv[rows] = (x_adv[rows] + self.step / 255 * grad.sign()).clamp(low[rows], high[rows])
        return ascent.answers()
