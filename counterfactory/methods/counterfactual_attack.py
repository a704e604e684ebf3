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
    Budget,
    ImageAnswers,
    ImageQueries,
    row_generators,
    row_noise,
    stored_verdict,
)
from counterfactory.methods.parts.adam import Adam, row_square
from counterfactory.methods.parts.ascent import Ascent
from counterfactory.methods.parts.latents import add_residual
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Autoencoder, Classifier


@dataclass(frozen=True, kw_only=True)
class CounterfactualAttack:
    """Adam ascent on the target's probability over the latent, until the stored image passes a
    threshold.

    threshold: probability of the target at which a row is done. objective: the quantity that is
    maximised, "probability" (the paper) or "log_probability" (does not saturate). residual: x' =
    clip(x + dec(z) - dec(z0)), which preserves what the autoencoder loses (False: x' = dec(z), the
    paper).

    Beyond the paper, each off by default: distance_weight: weight of -||z - z0||^2 in the
    objective. pixel_weight: weight of -|x' - x|, summed over the image. smoothing: standard
    deviation of noise on the latent at which the gradient is computed; the noise is drawn again at
    every step, so that only a change that survives it counts. second_moment: Adam's second moment
    per "coordinate" (the paper: all coordinates move by similar amounts, whether they matter or
    not) or per "row" (the step follows the gradient). shrink: number of bisections from z towards
    z0 for the smallest change that still passes. precision: "bfloat16" computes the networks in
    bfloat16 during the search (a third less time on a CPU with AVX512-BF16 or AMX); the verdict and
    the answer are always in float32.
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
        self, queries: ImageQueries, *, classifier: Classifier, autoencoder: Autoencoder
    ) -> ImageAnswers:
        """Return counterfactuals by latent ascent; for a row that never passes, the latent of
        highest p(target).
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
        queries: ImageQueries,
        z0: Tensor,
        decode: Callable[[Tensor], Tensor],
        classifier: Classifier,
        generators: Sequence[torch.Generator],
        budget: Budget,
    ) -> ImageAnswers:
        """Return the answers of the ascent from the queries' latents z0 (B,...), from any
        encoder.
        """
        x, everything = queries.images, torch.arange(len(queries), device=queries.images.device)
        x0 = None
        if self.residual:
            with torch.no_grad():
                x0 = decode(z0)
            budget.spend(everything, forward=1)

        def image(rows: Tensor, z_rows: Tensor) -> Tensor:
            """Return x' of some rows' latents."""
            return add_residual(x[rows], decode(z_rows), None if x0 is None else x0[rows])

        def passes_at(rows: Tensor, z_rows: Tensor) -> Tensor:
            """Return which rows pass with the given latents, and store the images of those that
            pass as the answers.
            """
            with torch.no_grad():
                made = image(rows, z_rows)
                flips, p = stored_verdict(classifier, made, queries.target[rows])
            budget.spend(rows, forward=2)
            good = flips & (p > self.threshold)
            ascent.images[rows[good]], ascent.known[rows[good]] = made[good], True
            return good

        def remake(rows: Tensor) -> Tensor:
            return image(rows, z[rows])

        half = self.precision == "bfloat16"
        apart = half or self.smoothing > 0  # the ascent's image differs from the stored image
        z, adam = z0.clone(), Adam.of(z0)
        ascent = Ascent(
            queries=queries,
            classifier=classifier,
            budget=budget,
            moved=(z0,),
            threshold=self.threshold,
            predicted=False,
            everyone=True,
            precision=self.precision,
        )
        for step in ascent.iterations(self.max_steps):
            rows = ascent.active
            z_n = z[rows].requires_grad_()
            shaken = z_n
            if self.smoothing:
                noise = row_noise([generators[row] for row in rows.tolist()], z.shape[1:], z.device)
                shaken = z_n + self.smoothing * noise
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                x_n = image(rows, shaken)
            log_p = ascent.judge(x_n, z_n, remake=remake if apart else None)

            gain = log_p.exp() if self.objective == "probability" else log_p
            if self.distance_weight:
                far = (z_n - z0[rows]).square().flatten(1).sum(1)
                gain = gain - self.distance_weight * far
            if self.pixel_weight:
                gain = gain - self.pixel_weight * (x_n - x[rows]).abs().flatten(1).sum(1)
            (grad,) = ascent.gradients(gain, z_n)
            rows = ascent.active
            square = row_square(grad) if self.second_moment == "row" else None
            z[rows] = z[rows] + self.lr * adam.step(rows, grad, step, square)

        (best,) = ascent.best
        best = shrunk(z0, best, everything[ascent.passed], passes_at, self.shrink)
        # The row already has its target, and no try is better than the query.
        there = (queries.source == queries.target) & ~ascent.passed
        best[there], ascent.images[there] = z0[there], x[there]
        left = everything[~ascent.known]
        if len(left):
            with torch.no_grad():
                ascent.images[left] = image(left, best[left])
            budget.spend(left, forward=1)
        return ascent.answers(latent_before=z0.flatten(1), latent_after=best.flatten(1))


def shrunk(
    z0: Tensor, z: Tensor, rows: Tensor, passes: Callable[[Tensor, Tensor], Tensor], bisections: int
) -> Tensor:
    """Return z with some rows moved back towards z0, by a bisection whose far end always passes."""
    across = (-1,) + (1,) * (z.ndim - 1)
    low, high = z.new_zeros(len(rows)), z.new_ones(len(rows))
    for _ in range(bisections if len(rows) else 0):
        middle = (low + high) / 2
        good = passes(rows, torch.lerp(z0[rows], z[rows], middle.view(across)))
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    back = z.clone()
    back[rows] = torch.lerp(z0[rows], z[rows], high.view(across))
    return back
