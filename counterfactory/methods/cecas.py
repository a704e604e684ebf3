"""CECAS, causally guided adversarial steering (Qiao et al.): ACE's attack, with the spurious
factors held constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

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
class CECAS:
    """Two attacks through the denoiser in the same batches: x' keeps the spurious factors, x''
    stays near x. Then x' is inpainted where x'' hardly changed.

    alpha: weight of L_S, the soft cross-entropy between the spurious factors' scores of x' and of x
    (eq. 6). spurious: None for the model's own factors (role causal), or attribute names where the
    model `spurious` predicts attributes; these are then held constant, beyond the paper. weight:
    lambda of x'' (eq. 7). gamma, kernel: the mask's threshold and the side d of its maximum window
    (odd; eq. 8). The other settings are those of ACE.

    Eq. 9 as printed pastes the original where the mask marks change. The text means the complement,
    which is implemented here.
    """

    name: ClassVar[str] = "cecas"
    version: ClassVar[int] = 2
    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ("denoiser", "spurious")

    alpha: float = 0.2
    spurious: tuple[str, ...] | None = None
    respaced: int = 50
    levels: int = 5
    iterations: int = 50
    step: float = 1.0
    weight: float = 0.001
    refine: bool = True
    gamma: float = 0.1
    kernel: int = 15
    draws: int = 1
    unrefined: bool = False
    stop: float | None = None
    through: int | None = None
    mask_after: int | None = None
    checkpoint: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_attack(self, alpha=(0, inf), weight=(0, inf))

    def expect(self, models: dict[str, Any]) -> None:
        """Raise ValueError where the model `spurious` does not predict what is to be held constant,
        or does not belong to this classifier.
        """
        known = getattr(models["spurious"], "attributes", None)
        if self.spurious is None and known is not None:
            raise ValueError(
                "expected method.settings.spurious, names of attributes that models.spurious tells,"
                " got none"
            )
        if self.spurious is not None and known is None:
            raise ValueError(
                "expected models.spurious of role attributes for method.settings.spurious, got role"
                " causal"
            )
        for name in self.spurious or ():
            if name not in (known or ()):
                raise ValueError(
                    f"expected method.settings.spurious out of {', '.join(known or ())}, got"
                    f" {name!r}"
                )
        if hasattr(models["spurious"], "expect"):
            models["spurious"].expect(models["classifier"])

    def __call__(
        self, queries: ImageQueries, *, classifier: Classifier, denoiser: Denoiser, spurious: Any
    ) -> ImageAnswers:
        """Return counterfactuals: the refined x', or with `unrefined` x' itself where no refined
        image flips.
        """
        self.expect({"classifier": classifier, "spurious": spurious})
        x, B = queries.images, len(queries)
        schedule = respace(denoiser.alphas_cumprod, self.respaced)
        budget = Budget.of(2 * B)
        # Both attacks of a row use the same noise, so that x' and x'' differ only by their terms.
        generators = row_generators(queries.seed.repeat(2))
        with torch.no_grad():
            said = self._spurious_scores(x, classifier, spurious).softmax(2)
        # One call for the classifier's features, and one for the factors' predictor on them.
        calls = 1 if self.spurious else 2
        budget.spend(torch.arange(B), forward=calls)

        def terms(images: Tensor, view: Tensor, rows: Tensor) -> Tensor:
            first = int((rows < B).sum())  # rows are in order: x' of the batch, then x''
            causal, near = rows[:first].to(x.device), (rows[first:] - B).to(x.device)
            distance = self.weight * l1(images[first:], x[near])
            if not first or not self.alpha:
                return torch.cat([images.new_zeros(first), distance])
            budget.spend(rows[:first], forward=calls, backward=calls)
            return torch.cat(
                [
                    self.alpha * self._held(said[causal], view[:first], classifier, spurious),
                    distance,
                ]
            )

        both = PurifiedPGD.of(self)(
            doubled(queries),
            schedule=schedule,
            generators=generators,
            budget=budget,
            classifier=classifier,
            denoiser=denoiser,
            term=terms,
        )
        pre, near = both.images[:B], both.images[B:]
        budget = Budget(
            budget.forward[:B] + budget.forward[B:], budget.backward[:B] + budget.backward[B:]
        )

        answer, mask = pre, torch.ones_like(x[:, :1])
        if self.refine:
            answer, mask = refine(
                queries,
                pre,
                keep_mask(x, near, gamma=self.gamma, kernel=self.kernel),
                schedule=schedule,
                generators=generators[:B],
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
            both.reasons(refined=self.refine)[:B],
            budget,
            steps=both.steps[:B],
            mask=mask,
        )

    def _spurious_scores(self, images: Tensor, classifier: Classifier, spurious: Any) -> Tensor:
        """Return the scores (n,J,K) that the spurious factors alone lead to: g(S(x)), or (0, logit)
        for each named attribute.
        """
        if self.spurious is None:
            scores: Tensor = spurious(images, classifier)
            return scores
        columns = [spurious.attributes.index(name) for name in self.spurious]
        logit = torch.logit(spurious(images)[:, columns], eps=1e-6)
        return torch.stack([torch.zeros_like(logit), logit], 2)

    def _held(self, said: Tensor, view: Tensor, classifier: Classifier, spurious: Any) -> Tensor:
        """Return L_S (n,): the soft cross-entropy between the scores of the view and of the query,
        summed over the J factors.
        """
        return -(said * self._spurious_scores(view, classifier, spurious).log_softmax(2)).sum(
            (1, 2)
        )


def doubled(queries: ImageQueries) -> ImageQueries:
    """Return the batch twice, one copy after the other."""
    return ImageQueries(
        images=torch.cat([queries.images] * 2),
        source=queries.source.repeat(2),
        target=queries.target.repeat(2),
        seed=queries.seed.repeat(2),
    )
