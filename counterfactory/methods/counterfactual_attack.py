"""Counterfactual Attacks (arXiv 2504.15479): an adversarial attack on an image's latent instead of
its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from counterfactory.methods.contract import (
    Answers,
    Budget,
    Queries,
    row_generators,
    row_noise,
    settle,
    stored_verdict,
    target_log_prob,
)
from counterfactory.methods.parts.adam import Adam
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Autoencoder, Classifier


@dataclass(frozen=True, kw_only=True)
class CounterfactualAttack:
    """Adam ascent on the target's probability over the latent, until the stored image passes a
    threshold.

    threshold: probability of the target at which a row is done; objective: what is ascended,
    "probability" (the paper) or "log_probability" (does not saturate); residual: x' = clip(x +
    dec(z) - dec(z0)), which keeps what the autoencoder loses (False: x' = dec(z), the paper).

    Beyond the paper, each off by default: distance_weight of -||z - z0||^2 and pixel_weight of -|x'
    - x| (a sum over the image), added to the objective; smoothing: standard deviation of noise on
    the latent at which the gradient is taken, new every step, so that only a change that survives
    it counts; second_moment: Adam's, one per "coordinate" (the paper: latents move alike, whether
    they matter or not) or one per "row" (the step follows the gradient); shrink: bisections from z
    back towards z0 for the smallest change that still passes; precision: "bfloat16" computes the
    networks in it while the gradient is sought (a third off on a CPU with AVX512-BF16 or AMX); the
    verdict and the answer are in float32 always.
    """

    name: ClassVar[str] = "counterfactual-attack"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ("autoencoder",)

    threshold: float = 0.75
    lr: float = 0.01
    max_steps: int = 500
    objective: str = "probability"
    residual: bool = True
    distance_weight: float = 0.0
    pixel_weight: float = 0.0
    smoothing: float = 0.0
    second_moment: str = "coordinate"
    shrink: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_settings(
            self,
            threshold=(0, 1),
            lr=(0, inf),
            max_steps=(0, inf),
            objective=("probability", "log_probability"),
            distance_weight=(0, inf),
            pixel_weight=(0, inf),
            smoothing=(0, inf),
            second_moment=("coordinate", "row"),
            shrink=(0, inf),
            precision=("float32", "bfloat16"),
        )

    def __call__(
        self, queries: Queries, *, classifier: Classifier, autoencoder: Autoencoder
    ) -> Answers:
        """Counterfactuals by latent ascent; a row that never passes keeps its latent of highest
        p(target).
        """
        budget = Budget.of(len(queries))
        with torch.no_grad():
            z0 = autoencoder.encode(queries.images)
        budget.spend(torch.arange(len(queries)), forward=1)
        return self.attack(
            queries, z0, autoencoder.decode, classifier, row_generators(queries.seed), budget
        )

    def attack(
        self,
        queries: Queries,
        z0: Tensor,
        decode: Callable[[Tensor], Tensor],
        classifier: Classifier,
        generators: Sequence[torch.Generator],
        budget: Budget,
    ) -> Answers:
        """The ascent from the queries' latents z0 (B,...), wherever they are from."""
        x, target = queries.images, queries.target
        reasons = ["not converged"] * len(x)
        steps = torch.zeros(len(x), dtype=torch.int64)
        everything = active = torch.arange(len(x), device=x.device)

        x0 = x
        if self.residual:
            with torch.no_grad():
                x0 = decode(z0)
            budget.spend(everything, forward=1)

        def image(rows: Tensor, z_rows: Tensor) -> Tensor:
            """x' of some rows: the decoded latent, or the query moved by what the decoded latent
            moved.
            """
            decoded = decode(z_rows)
            # The difference first, so that z = z0 gives x to the last bit.
            return (x[rows] + (decoded - x0[rows])).clamp(0, 1) if self.residual else decoded

        def passes(rows: Tensor, images: Tensor) -> Tensor:
            """Which rows' images are, as stored, their target and above the threshold."""
            flips, p = stored_verdict(classifier, images, target[rows])
            budget.spend(rows, forward=1)
            return flips & (p > self.threshold)

        def passes_at(rows: Tensor, z_rows: Tensor) -> Tensor:
            """Which rows pass with a latent whose image is still to be made; the answers are those
            images.
            """
            budget.spend(rows, forward=1)
            with torch.no_grad():
                made = image(rows, z_rows)
                good = passes(rows, made)
            answer[rows[good]], known[rows[good]] = made[good], True
            return good

        half = self.precision == "bfloat16"
        apart = half or self.smoothing > 0  # the ascent's image is not the one that is stored
        z, adam = z0.clone(), Adam.of(z0)
        best, best_p, passed = (
            z0.clone(),
            x.new_full((len(x),), -1.0),
            x.new_zeros(len(x), dtype=torch.bool),
        )
        # the images of `best`, where they have been made
        answer, known = x.clone(), queries.source == target
        for step in range(1, self.max_steps + 2):
            # Rows that are done have left: the models see the active ones only.
            z_a = z[active].requires_grad_()
            shaken = z_a
            if self.smoothing:
                noise = row_noise(
                    [generators[row] for row in active.tolist()], z.shape[1:], z.device
                )
                shaken = z_a + self.smoothing * noise
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                x_a = image(active, shaken)
                log_p = target_log_prob(classifier, x_a, target[active])
            p = log_p.detach().exp()
            budget.spend(active, forward=2)

            # Rounding inside the ascent would blow float noise up to 8-bit levels: only the verdict
            # sees stored images.
            done = p > self.threshold
            near = active[done]
            if len(near):
                done[done.clone()] = (
                    passes_at(near, z[near]) if apart else passes(near, x_a.detach()[done])
                )
            better = done | (p > best_p[active])
            best[active[better]], best_p[active[better]] = z[active[better]], p[better]
            if not apart:
                answer[active[better]], known[active[better]] = x_a.detach()[better], True
            passed[active[done]] = True
            if step > self.max_steps or done.all():
                break

            ascent = log_p.exp() if self.objective == "probability" else log_p
            if self.distance_weight:
                ascent = ascent - self.distance_weight * (z_a - z0[active]).square().flatten(1).sum(
                    1
                )
            if self.pixel_weight:
                ascent = ascent - self.pixel_weight * (x_a - x[active]).abs().flatten(1).sum(1)
            (grad,) = torch.autograd.grad(ascent.sum(), z_a)
            budget.spend(active[~done], backward=2)

            finite = grad.isfinite().flatten(1).all(1)
            for row in active[~done & ~finite].tolist():
                reasons[row] = "non-finite gradient"
            active, grad = active[~done & finite], grad[~done & finite]
            if not len(active):
                break
            square = grad.square()
            if self.second_moment == "row":
                square = square.mean(tuple(range(1, z.ndim)), keepdim=True).expand_as(square)
            z[active] = z[active] + self.lr * adam.step(active, grad, step, square)
            steps[active.cpu()] += 1

        best = shrunk(z0, best, everything[passed], passes_at, self.shrink)
        # asked for what it is: no try is better than the query
        kept = (queries.source == target) & ~passed
        best[kept], answer[kept] = z0[kept], x[kept]
        left = everything[~known]
        if len(left):
            with torch.no_grad():
                answer[left] = image(left, best[left])
            budget.spend(left, forward=1)
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


def shrunk(
    z0: Tensor, z: Tensor, rows: Tensor, passes: Callable[[Tensor, Tensor], Tensor], bisections: int
) -> Tensor:
    """z with some rows drawn back towards z0: the end of a bisection whose far end
    always passes."""
    across = (-1,) + (1,) * (z.ndim - 1)
    low, high = z.new_zeros(len(rows)), z.new_ones(len(rows))
    for _ in range(bisections if len(rows) else 0):
        middle = (low + high) / 2
        good = passes(rows, torch.lerp(z0[rows], z[rows], middle.view(across)))
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    back = z.clone()
    back[rows] = torch.lerp(z0[rows], z[rows], high.view(across))
    return back
