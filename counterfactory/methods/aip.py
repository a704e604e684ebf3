"""AIP, attribute-informed perturbation (Yang et al., "Generative Counterfactuals for Neural
Networks via Attribute-Informed Perturbation"): gradient descent on a face's latent and on its
attributes at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Generator, Tensor

from counterfactory.methods.contract import (
    Answers,
    Budget,
    Queries,
    passes_stored,
    row_generators,
    settle,
)
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import AttributeAutoencoder, Classifier


@dataclass(frozen=True, kw_only=True)
class AIP:
    """Algorithm 1: step down eq. 3 with decaying steps until the stored image is its target or
    n_max is reached.

    The printed loop goes on while the image is not its target OR n <= n_max, which never ends
    early: it is AND here. alpha: weight of ||z - z0|| + ||a - a0||; mu, gamma: first steps on the
    latent z and on the attributes a; beta: what both are multiplied by after each iteration. z0,
    a0: the query's latent, and its attributes as the autoencoder reads them, 0 or 1.

    Beyond the paper: floor: the part of mu and gamma that decay leaves (0, the paper: all of the
    way that a row can go is gradient x mu / (1 - beta)); threshold: probability that the target
    must pass beside being the prediction (0, the paper); residual: x' = clip(x + dec(z,a) -
    dec(z0,a0)), which keeps what the autoencoder loses (False: x' = dec(z,a), the paper); clamp: a
    stays in [0,1].
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
        self, queries: Queries, *, classifier: Classifier, attgan: AttributeAutoencoder
    ) -> Answers:
        """Counterfactuals; a row that does not flip keeps its iterate of highest p(target)."""
        x, target = queries.images, queries.target
        budget, reasons = Budget.of(len(x)), ["not converged"] * len(x)
        generators = row_generators(queries.seed)
        steps = torch.zeros(len(x), dtype=torch.int64)
        everything = torch.arange(len(x), device=x.device)

        with torch.no_grad():
            z0, skip = attgan.encode(x), attgan.skip(x)
            a0 = (attgan.attributes_of(x) > 0.5).to(z0)
            x0 = attgan.decode(z0, a0, skip)
        budget.spend(everything, forward=4)

        def image(rows: Tensor, z_rows: Tensor, a_rows: Tensor) -> Tensor:
            """x' of some rows: the decoded latent, or the query moved by what the decoded latent
            moved.
            """
            decoded = attgan.decode(z_rows, a_rows, skip[rows])
            # The difference first, so that z0 and a0 give x to the last bit.
            return (x[rows] + (decoded - x0[rows])).clamp(0, 1) if self.residual else decoded

        z, a = z0.clone(), a0.clone()
        best_z, best_a, best_p, answer = (
            z0.clone(),
            a0.clone(),
            x.new_full((len(x),), -1.0),
            x.clone(),
        )
        active = (queries.source != target).nonzero()[:, 0]  # who has the target already keeps it
        for n in range(self.n_max + 1):
            if not len(active):
                break
            z_n, a_n = z[active].requires_grad_(), a[active].requires_grad_()
            x_n = image(active, z_n, a_n)
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
            best_z[active[better]], best_a[active[better]] = (
                z_n.detach()[better],
                a_n.detach()[better],
            )
            best_p[active[better]], answer[active[better]] = p[better], x_n.detach()[better]
            if n == self.n_max or done.all():
                break

            # Eq. 3, a sum over rows, so that each has its own gradient.
            loss = -log_target + self.alpha * (length(z_n - z0[active]) + length(a_n - a0[active]))
            grad_z, grad_a = torch.autograd.grad(loss.sum(), (z_n, a_n))
            budget.spend(active[~done], backward=2)
            finite = grad_z.isfinite().flatten(1).all(1) & grad_a.isfinite().all(1)
            for row in active[~done & ~finite].tolist():
                reasons[row] = "non-finite gradient"
            going = ~done & finite
            active, grad_z, grad_a = active[going], grad_z[going], grad_a[going]
            # Eq. 6, and the decay of algorithm 1.
            pace = max(self.beta**n, self.floor)
            way_z, way_a = self.ways(grad_z, grad_a, [generators[row] for row in active.tolist()])
            z[active] = z[active] - self.mu * pace * way_z
            a[active] = a[active] - self.gamma * pace * way_a
            if self.clamp:
                a[active] = a[active].clamp(0, 1)
            steps[active.cpu()] += 1

        return settle(
            classifier,
            answer,
            queries,
            reasons,
            budget,
            steps=steps,
            latent_before=z0.flatten(1),
            latent_after=best_z.flatten(1),
            condition_before=a0,
            condition_after=best_a,
        )

    def ways(
        self, grad_z: Tensor, grad_a: Tensor, generators: list[Generator]
    ) -> tuple[Tensor, Tensor]:
        """What z and a step against, per row."""
        return grad_z, grad_a


def length(difference: Tensor) -> Tensor:
    """The l2 norm of each row; (B,). Its gradient is 0 where the row is 0."""
    norm: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    return norm
