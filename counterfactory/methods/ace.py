"""ACE, Adversarial Counterfactual Explanations (Jeanneret et al., CVPR 2023): an adversarial attack
through a diffusion model.
"""

from __future__ import annotations

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
    settle,
)
from counterfactory.methods.parts.diffusion import keep_mask, respace
from counterfactory.methods.parts.purified_pgd import PurifiedPGD, check_attack, l1, refine
from counterfactory.models.interfaces import Classifier, Denoiser


@dataclass(frozen=True, kw_only=True)
class ACE:
    """PGD on the image through classifier(denoise(noise(x'))), followed by inpainting of the pixels
    that hardly changed.

    respaced: number of steps that the denoiser's schedule is shortened to. levels: K (the paper's
    tau), number of steps that x' is noised by and denoised from. step: the attack's step, in 8-bit
    levels. distance, weight: the loss adds weight (lambda) times the "l1" sum or the "l2" norm of
    x' - x, per sample, in [0,1]. refine: inpaint after the attack. gamma, kernel: the mask's
    threshold, and the side of its maximum window (odd). draws: highest number of refinements; each
    after the first uses new noise, where the one before undid the flip. unrefined: the answer is
    the pre-explanation where no refinement flips; it may be noise, and counts as a flip.
    checkpoint: more denoiser calls for less memory.

    The paper has draws 1, unrefined false, stop, through and mask_after null, and precision
    float32. PurifiedPGD explains how stop, through, mask_after and precision save work.

    Pixels are in [0,1] as in the public ACE code, so that a step of 1 stays on the 8-bit grid. The
    denoiser receives [-1,1].
    """

    name: ClassVar[str] = "ace"
    version: ClassVar[int] = 2
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ("denoiser",)

    respaced: int = 50
    levels: int = 5
    iterations: int = 50
    step: float = 1.0
    distance: str = "l1"
    weight: float = 0.001
    refine: bool = True
    gamma: float = 0.15
    kernel: int = 15
    draws: int = 1
    unrefined: bool = False
    stop: float | None = None
    through: int | None = None
    mask_after: int | None = None
    checkpoint: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_attack(self, distance=("l1", "l2"), weight=(0, inf))

    def __call__(
        self, queries: ImageQueries, *, classifier: Classifier, denoiser: Denoiser
    ) -> ImageAnswers:
        """Return counterfactuals: the refined image, or with `unrefined` the pre-explanation where
        no refined image flips.
        """
        x, budget = queries.images, Budget.of(len(queries))
        schedule = respace(denoiser.alphas_cumprod, self.respaced)
        generators = row_generators(queries.seed)

        def distance(x_pre: Tensor, view: Tensor, rows: Tensor) -> Tensor:
            original = x[rows.to(x.device)]
            if self.distance == "l1":
                return self.weight * l1(x_pre, original)
            length: Tensor = torch.linalg.vector_norm((x_pre - original).flatten(1), dim=1)
            return self.weight * length

        attack = PurifiedPGD.of(self)
        pre = attack(
            queries,
            schedule=schedule,
            generators=generators,
            budget=budget,
            classifier=classifier,
            denoiser=denoiser,
            term=distance,
        )
        answer, mask = pre.images, torch.ones_like(x[:, :1])
        if self.refine:
            answer, mask = refine(
                queries,
                pre.images,
                keep_mask(x, pre.images, gamma=self.gamma, kernel=self.kernel),
                schedule=schedule,
                generators=generators,
                levels=self.levels,
                draws=self.draws,
                unrefined=self.unrefined,
                budget=budget,
                classifier=classifier,
                denoiser=denoiser,
            )

        return settle(
            classifier,
            answer,
            queries,
            pre.reasons(refined=self.refine),
            budget,
            steps=pre.steps,
            mask=mask,
        )
