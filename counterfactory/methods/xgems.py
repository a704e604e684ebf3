"""xGEMs (Joshi et al. 2018): gradient descent on the latent alone, towards the target and near the
query's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch

from counterfactory.methods.contract import Budget, ImageAnswers, ImageQueries
from counterfactory.methods.parts.adam import Adam
from counterfactory.methods.parts.ascent import Ascent
from counterfactory.methods.parts.latents import add_residual, encoded
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import AttributeAutoencoder, Autoencoder, Classifier


@dataclass(frozen=True, kw_only=True)
class XGEMs:
    """Descent on CE(F(dec(z)), target) + distance_weight * ||x' - x||^2 over z, until the stored
    image has its target class.

    distance_weight: weight of the squared pixel distance, summed over the image. optimizer:
    "gradient" (the paper's plain steps) or "adam". threshold: probability that the target must
    exceed, in addition to being the prediction. residual: x' = clip(x + dec(z) - dec(z0)), which
    preserves what the autoencoder loses (False: x' = dec(z), the paper).

    An autoencoder with attributes (AttGAN) always receives the query's attributes.
    """

    name: ClassVar[str] = "xgems"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ("autoencoder",)

    lr: float = 0.1
    max_steps: int = 50
    distance_weight: float = 1e-3
    optimizer: str = "gradient"
    threshold: float = 0.0
    residual: bool = True

    def __post_init__(self) -> None:
        check_settings(
            self,
            lr=(0, inf),
            max_steps=(0, inf),
            distance_weight=(0, inf),
            optimizer=("gradient", "adam"),
            threshold=(0, 1),
        )

    def __call__(
        self,
        queries: ImageQueries,
        *,
        classifier: Classifier,
        autoencoder: Autoencoder | AttributeAutoencoder,
    ) -> ImageAnswers:
        """Return counterfactuals; for a row that does not flip, the iterate of highest
        p(target).
        """
        x, budget = queries.images, Budget.of(len(queries))
        everything = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            z0, decode, calls = encoded(autoencoder, x)
            x0 = decode(everything, z0)
        budget.spend(everything, forward=calls + 1)

        z, adam = z0.clone(), Adam.of(z0)
        ascent = Ascent(
            queries=queries,
            classifier=classifier,
            budget=budget,
            moved=(z0,),
            threshold=self.threshold,
        )
        for step in ascent.iterations(self.max_steps):
            rows = ascent.active
            z_n = z[rows].requires_grad_()
            x_n = add_residual(x[rows], decode(rows, z_n), x0[rows] if self.residual else None)
            log_p = ascent.judge(x_n, z_n)
            loss = -log_p + self.distance_weight * (x_n - x[rows]).square().flatten(1).sum(1)
            (grad,) = ascent.gradients(loss, z_n)
            rows = ascent.active
            way = adam.step(rows, grad, step) if self.optimizer == "adam" else grad
            z[rows] = z[rows] - self.lr * way

        (best,) = ascent.best
        return ascent.answers(latent_before=z0.flatten(1), latent_after=best.flatten(1))
