"""STEEX (Jacob et al. 2022): gradient descent on the styles of an image's regions, with a fixed
layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from counterfactory.methods.contract import Budget, ImageAnswers, ImageQueries
from counterfactory.methods.parts.adam import Adam, row_square
from counterfactory.methods.parts.ascent import Ascent
from counterfactory.methods.parts.latents import add_residual
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier, SemanticAutoencoder


@dataclass(frozen=True, kw_only=True)
class STEEX:
    """Adam on CE(F(dec(z, mask)), target) + distance_weight * sum over regions of ||z_r - z0_r||^2,
    over the styles z of the mask's regions.

    regions: names of the regions whose styles may change; None: all (the paper's general setting).
    confine: only the pixels of these regions may change, x' = x + M * (x' - x), because a decoder's
    convolutions reach over the regions' borders (beyond the paper; no effect where all regions may
    change). residual: x' = clip(x + dec(z) - dec(z0)), which preserves what the autoencoder loses
    (False: x' = dec(z), the paper). threshold: a row is done when the stored image's p(target)
    exceeds it (1, the paper: every row takes all steps).

    Beyond the paper, off by default: pixel_weight: weight of |x' - x|, summed over the image.
    second_moment: Adam's second moment per "coordinate" (the paper: all styles move by similar
    amounts, whether they matter or not) or per "row" (the step follows the gradient).
    """

    name: ClassVar[str] = "steex"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ("semantic",)
    needs_masks: ClassVar[bool] = True

    lr: float = 0.01
    max_steps: int = 100
    distance_weight: float = 0.3
    regions: tuple[str, ...] | None = None
    confine: bool = True
    residual: bool = True
    threshold: float = 1.0
    pixel_weight: float = 0.0
    second_moment: str = "coordinate"

    def __post_init__(self) -> None:
        check_settings(
            self,
            lr=(0, inf),
            max_steps=(0, inf),
            distance_weight=(0, inf),
            threshold=(0, 1),
            pixel_weight=(0, inf),
            second_moment=("coordinate", "row"),
        )

    def expect(self, models: Mapping[str, Any]) -> None:
        """Raise ValueError where the model has no region of a given name."""
        known = models["semantic"].regions
        for name in self.regions or ():
            if name not in known:
                raise ValueError(f"expected regions out of {', '.join(known)}, got {name!r}")

    def __call__(
        self, queries: ImageQueries, *, classifier: Classifier, semantic: SemanticAutoencoder
    ) -> ImageAnswers:
        """Return counterfactuals: the last iterate that is classified as its target, else the
        iterate of highest p(target). ValueError where the queries have no masks.
        """
        x, masks, budget = queries.images, queries.masks, Budget.of(len(queries))
        if masks is None:
            raise ValueError("expected queries with masks (data.mask), got none")
        self.expect({"semantic": semantic})
        everything = torch.arange(len(x), device=x.device)
        moving = torch.tensor(
            [name in (self.regions or semantic.regions) for name in semantic.regions]
        ).to(x.device)
        inside = moving[masks][:, None]  # (B,1,H,W), the pixels that may change
        confined = self.confine and self.regions is not None

        with torch.no_grad():
            z0 = semantic.encode(x, masks)
            x0 = semantic.decode(z0, masks)
        budget.spend(everything, forward=2)

        def image(rows: Tensor, z_rows: Tensor) -> Tensor:
            """Return x' of some rows: the decoded styles, or with the residual the query plus the
            decoded change.
            """
            made = semantic.decode(z_rows, masks[rows])
            made = add_residual(x[rows], made, x0[rows] if self.residual else None)
            return torch.where(inside[rows], made, x[rows]) if confined else made

        z, adam = z0.clone(), Adam.of(z0)
        ascent = Ascent(
            queries=queries,
            classifier=classifier,
            budget=budget,
            moved=(z0,),
            threshold=self.threshold,
            keep_last=True,
        )
        there = inside.flatten(1).any(1)
        for row in (~there).nonzero()[:, 0].tolist():
            ascent.reasons[row] = f"its mask has nothing of {', '.join(self.regions or ())}"
        ascent.active = ascent.active[there[ascent.active]]
        for step in ascent.iterations(self.max_steps):
            rows = ascent.active
            z_n = z[rows].requires_grad_()
            x_n = image(rows, z_n)
            log_p = ascent.judge(x_n, z_n)
            far = (z_n - z0[rows]).square().flatten(1).sum(1)
            loss = -log_p + self.distance_weight * far
            loss = loss + self.pixel_weight * (x_n - x[rows]).abs().flatten(1).sum(1)
            (grad,) = ascent.gradients(loss, z_n)
            rows, grad = ascent.active, grad * moving[:, None]
            square = row_square(grad) if self.second_moment == "row" else None
            z[rows] = z[rows] - self.lr * adam.step(rows, grad, step, square)

        (best,) = ascent.best
        with torch.no_grad():
            moved = (best != z0).flatten(1).any(1)[:, None, None, None]
            tried = torch.where(moved, image(everything, best), x)
        budget.spend(everything, forward=1)
        return ascent.answers(
            tried,
            latent_before=z0.flatten(1),
            latent_after=best.flatten(1),
            mask=inside.float() if confined else None,
        )
