"""xGEMs (Joshi et al. 2018): gradient descent on the latent alone, towards the target and near the
query's pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from counterfactory.methods.contract import Answers, Budget, Queries, passes_stored, settle
from counterfactory.methods.parts.adam import Adam
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import AttributeAutoencoder, Autoencoder, Classifier

Decode = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class XGEMs:
    """Descent on CE(F(dec(z)), target) + distance_weight * ||x' - x||^2 over z, until the stored
    image is its target.

    distance_weight: of the squared pixel distance, a sum over the image; optimizer: "gradient" (the
    paper's plain steps) or "adam"; threshold: probability that the target must pass beside being
    the prediction; residual: x' = clip(x + dec(z) - dec(z0)), which keeps what the autoencoder
    loses (False: x' = dec(z), the paper).

    An autoencoder that is told attributes (AttGAN) is told the query's throughout.
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
        queries: Queries,
        *,
        classifier: Classifier,
        autoencoder: Autoencoder | AttributeAutoencoder,
    ) -> Answers:
        """Counterfactuals; a row that does not flip keeps its iterate of highest p(target)."""
        x, target = queries.images, queries.target
        budget, reasons = Budget.of(len(x)), ["not converged"] * len(x)
        steps = torch.zeros(len(x), dtype=torch.int64)
        everything = torch.arange(len(x), device=x.device)

        with torch.no_grad():
            z0, decode, calls = encoded(autoencoder, x)
            x0 = decode(everything, z0)
        budget.spend(everything, forward=calls + 1)

        def image(rows: Tensor, z_rows: Tensor) -> Tensor:
            """x' of some rows: the decoded latent, or the query moved by what the decoded latent
            moved.
            """
            decoded = decode(rows, z_rows)
            # The difference first, so that z = z0 gives x to the last bit.
            return (x[rows] + (decoded - x0[rows])).clamp(0, 1) if self.residual else decoded

        z, adam = z0.clone(), Adam.of(z0)
        best, best_p, answer = z0.clone(), x.new_full((len(x),), -1.0), x.clone()
        active = (queries.source != target).nonzero()[:, 0]  # who has the target already keeps it
        for step in range(1, self.max_steps + 2):
            if not len(active):
                break
            z_n = z[active].requires_grad_()
            x_n = image(active, z_n)
            log_p = classifier(x_n).log_softmax(1)
            log_target = log_p.gather(1, target[active, None])[:, 0]
            budget.spend(active, forward=2)

            p, here = log_target.detach().exp(), log_p.detach().argmax(1) == target[active]
            # only where it is the prediction need it be looked at
            hoped = p.where(here, torch.full_like(p, -1.0))
            done = passes_stored(
                classifier, x_n.detach(), target[active], hoped, self.threshold, active, budget
            )
            better = done | (p > best_p[active])
            best[active[better]], best_p[active[better]] = z_n.detach()[better], p[better]
            answer[active[better]] = x_n.detach()[better]
            if step > self.max_steps or done.all():
                break

            loss = -log_target + self.distance_weight * (x_n - x[active]).square().flatten(1).sum(1)
            (grad,) = torch.autograd.grad(loss.sum(), z_n)
            budget.spend(active[~done], backward=2)
            finite = grad.isfinite().flatten(1).all(1)
            for row in active[~done & ~finite].tolist():
                reasons[row] = "non-finite gradient"
            active, grad = active[~done & finite], grad[~done & finite]
            way = adam.step(active, grad, step) if self.optimizer == "adam" else grad
            z[active] = z[active] - self.lr * way
            steps[active.cpu()] += 1

        return settle(
            classifier,
            answer,
            queries,
            reasons,
            budget,
            steps=steps,
            latent_before=z0.flatten(1),
            latent_after=best.flatten(1),
        )


def encoded(autoencoder: Any, x: Tensor) -> tuple[Tensor, Decode, int]:
    """Latents of the queries, what decodes some rows' latents, and the passes through the network
    that it took.
    """
    z0: Tensor = autoencoder.encode(x)
    if not hasattr(autoencoder, "attributes_of"):
        return z0, lambda rows, z: autoencoder.decode(z), 1
    skip, told = autoencoder.skip(x), (autoencoder.attributes_of(x) > 0.5).to(z0)
    return z0, lambda rows, z: autoencoder.decode(z, told[rows], skip[rows]), 3
