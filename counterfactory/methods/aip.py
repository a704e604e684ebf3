"""AIP, attribute-informed perturbation (Yang et al., "Generative Counterfactuals for Neural
Networks via Attribute-Informed Perturbation"): joint gradient descent on a face's latent and its
attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Generator, Tensor

from counterfactory.methods.contract import Budget, ImageAnswers, ImageQueries, row_generators
from counterfactory.methods.parts.ascent import Ascent
from counterfactory.methods.parts.latents import add_residual
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import AttributeAutoencoder, Classifier


@dataclass(frozen=True, kw_only=True)
class AIP:
    """Algorithm 1: descent on eq. 3 with decaying steps until the stored image has its target class
    or n_max is reached.

    The printed loop goes on while the image is not its target OR n <= n_max, so it never ends
    early. Here the condition is AND. alpha: weight of ||z - z0|| + ||a - a0||. mu, gamma: first
    step sizes on the latent z and on the attributes a. beta: factor on both step sizes after each
    iteration. z0, a0: the query's latent, and its attributes as the autoencoder predicts them, 0 or
    1.

    Beyond the paper: floor: lowest share of mu and gamma that decay can reach (0, the paper: a row
    moves at most gradient x mu / (1 - beta) in total). threshold: probability that the target must
    exceed, in addition to being the prediction (0, the paper). residual: x' = clip(x + dec(z,a) -
    dec(z0,a0)), which preserves what the autoencoder loses (False: x' = dec(z,a), the paper).
    clamp: a stays in [0,1].
    """

    name: ClassVar[str] = "aip"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ("attgan",)

    alpha: float = 1.5
    beta: float = 0.9
    n_max: int = 500
    mu: float = 2.0
    gamma: float = 3.0
    floor: float = 0.0
    threshold: float = 0.0
    residual: bool = True
    clamp: bool = False

    def __post_init__(self) -> None:
        check_settings(
            self,
            alpha=(0, inf),
            beta=(0, 1),
            n_max=(0, inf),
            mu=(0, inf),
            gamma=(0, inf),
            floor=(0, 1),
            threshold=(0, 1),
        )

    def __call__(
        self, queries: ImageQueries, *, classifier: Classifier, attgan: AttributeAutoencoder
    ) -> ImageAnswers:
        """Return counterfactuals; for a row that does not flip, the iterate of highest
        p(target).
        """
        x, budget = queries.images, Budget.of(len(queries))
        generators = row_generators(queries.seed)
        with torch.no_grad():
            z0, skip = attgan.encode(x), attgan.skip(x)
            a0 = (attgan.attributes_of(x) > 0.5).to(z0)
            x0 = attgan.decode(z0, a0, skip)
        budget.spend(torch.arange(len(x)), forward=4)

        z, a = z0.clone(), a0.clone()
        ascent = Ascent(
            queries=queries,
            classifier=classifier,
            budget=budget,
            moved=(z0, a0),
            threshold=self.threshold,
        )
        for n in ascent.iterations(self.n_max):
            rows = ascent.active
            z_n, a_n = z[rows].requires_grad_(), a[rows].requires_grad_()
            decoded = attgan.decode(z_n, a_n, skip[rows])
            x_n = add_residual(x[rows], decoded, x0[rows] if self.residual else None)
            log_p = ascent.judge(x_n, z_n, a_n)
            # Eq. 3, summed over rows, so that each row has its own gradient.
            loss = -log_p + self.alpha * (length(z_n - z0[rows]) + length(a_n - a0[rows]))
            grad_z, grad_a = ascent.gradients(loss, z_n, a_n)
            # Eq. 6, and the decay of algorithm 1.
            rows, pace = ascent.active, max(self.beta ** (n - 1), self.floor)
            way_z, way_a = self.directions(
                grad_z, grad_a, [generators[row] for row in rows.tolist()]
            )
            z[rows] = z[rows] - self.mu * pace * way_z
            a[rows] = a[rows] - self.gamma * pace * way_a
            if self.clamp:
                a[rows] = a[rows].clamp(0, 1)

        best_z, best_a = ascent.best
        return ascent.answers(
            latent_before=z0.flatten(1),
            latent_after=best_z.flatten(1),
            condition_before=a0,
            condition_after=best_a,
        )

    def directions(
        self, grad_z: Tensor, grad_a: Tensor, generators: list[Generator]
    ) -> tuple[Tensor, Tensor]:
        """Return the directions that z and a step against, per row."""
        return grad_z, grad_a


def length(difference: Tensor) -> Tensor:
    """Return the l2 norm of each row, (B,); its gradient is 0 where the row is 0."""
    norm: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    return norm
