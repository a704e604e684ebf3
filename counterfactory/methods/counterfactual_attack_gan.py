"""Counterfactual Attacks with a GAN (arXiv 2504.15479): an inversion finds the image's latent,
which is then attacked.
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
    """The latent attack, started at the latent whose generated image is nearest to the query.

    starts, spread: number of random latents, of which the nearest is the start of the inversion,
    and their standard deviation (0.7 is the truncation that the authors use). inversion_steps,
    inversion_lr, inversion_decay: AdamW's settings. perceptual, pixels: weights of the distance: a
    perceptual distance (the paper's), and the squared pixel error summed over the image. Beyond the
    paper: patience, tolerance: a row's inversion ends when its distance did not fall by this share
    for `patience` steps (patience 0: never).

    Without the residual, x' = G(z) is a rebuilt face. The loss of the inversion may then flip it
    before the first step, so that the attack no longer starts from the query's class. residual:
    true adds the change of G(z) to the query itself.
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
        """Return the models that the method needs; the perceptual model only where its weight is
        not 0.
        """
        return ("gan", "perceptual") if self.perceptual else ("gan",)

    def __call__(  # type: ignore[override]
        self,
        queries: ImageQueries,
        *,
        classifier: Classifier,
        gan: Generator,
        perceptual: PerceptualDistance | None = None,
    ) -> ImageAnswers:
        """Return counterfactuals; for a row that never passes, the latent of highest p(target)."""
        looks = perceptual if self.perceptual else None

        def distance(made: Tensor, images: Tensor) -> Tensor:
            """Return the distance of each pair of images; (n,)."""
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
