"""Counterfactual Attacks with a GAN (arXiv 2504.15479): its latent is found by inversion, and then
attacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor

from counterfactory.methods.contract import Budget, ImageAnswers, ImageQueries, row_generators
from counterfactory.methods.counterfactual_attack import CounterfactualAttack
from counterfactory.methods.parts.inversion import Inversion
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier, Generator, PerceptualDistance


@dataclass(frozen=True, kw_only=True)
class CounterfactualAttackGAN(CounterfactualAttack):
    """The latent attack from where a generator comes nearest to the query.

    starts, spread: random latents to begin from, of which the nearest is kept, and their standard
    deviation (0.7 is the truncation that the authors draw with); inversion_steps, inversion_lr,
    inversion_decay: AdamW's; perceptual, pixels: what is near: a perceptual distance (the paper's)
    and the squared pixel error, a sum over the image. Beyond the paper: patience, tolerance: an
    inversion ends when for `patience` steps the distance did not fall by that share (0: never).

    Without the residual, x' = G(z) is a rebuilt face, and what the inversion lost may flip it
    before any step: the query's class is then no longer what is attacked. residual: true moves the
    query itself by what G(z) moves.
    """

    name: ClassVar[str] = "counterfactual-attack-gan"
    version: ClassVar[int] = 1

    starts: int = 128
    spread: float = 0.7
    inversion_steps: int = 500
    inversion_lr: float = 0.1
    inversion_decay: float = 0.01
    perceptual: float = 1.0
    pixels: float = 0.0
    patience: int = 0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(
            self,
            starts=(1, inf),
            spread=(0, inf),
            inversion_steps=(0, inf),
            inversion_lr=(0, inf),
            inversion_decay=(0, inf),
            perceptual=(0, inf),
            pixels=(0, inf),
            patience=(0, inf),
            tolerance=(0, 1),
        )
        if not self.perceptual and not self.pixels:
            raise ValueError(
                "expected perceptual or pixels above 0, got 0 for both: nothing says what is near"
            )

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The perceptual model only where it weighs something."""
        return ("gan", "perceptual") if self.perceptual else ("gan",)

    def __call__(  # type: ignore[override]
        self,
        queries: ImageQueries,
        *,
        classifier: Classifier,
        gan: Generator,
        perceptual: PerceptualDistance | None = None,
    ) -> ImageAnswers:
        """Counterfactuals; a row that never passes keeps its latent of highest p(target)."""
        looks = perceptual if self.perceptual else None

        def distance(made: Tensor, images: Tensor) -> Tensor:
            """How far images are apart; (n,)."""
            far = self.pixels * (made - images).square().flatten(1).sum(1)
            return far if looks is None else far + self.perceptual * looks(made, images)

        inversion = Inversion(
            starts=self.starts,
            spread=self.spread,
            steps=self.inversion_steps,
            lr=self.inversion_lr,
            decay=self.inversion_decay,
            patience=self.patience,
            tolerance=self.tolerance,
            precision=self.precision,
        )
        budget, generators = Budget.of(len(queries)), row_generators(queries.seed)
        z0 = inversion(
            gan, distance, queries.images, generators, budget, calls=0 if looks is None else 1
        )
        return self.attack(queries, z0, gan.decode, classifier, generators, budget)
