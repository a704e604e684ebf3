"""Metrics of whether the decision changed, with what probability, and how early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from counterfactory.metrics.cout import cout
from counterfactory.metrics.flips import agreement, any_flipped, flips
from counterfactory.metrics.modules.states import MeanMetric, RateMetric, floats, numbers_of

Classifier = Callable[[Tensor], Tensor]


class FlipRate(RateMetric):
    """Share of counterfactuals that the classifier assigns to their target class.

    above: where set, an answer counts if the probability of its target is above this value. Range
    [0,1], higher is better. The paper of AIP prints the condition as F(x0) = y*; it means F(x*).

    >>> metric = FlipRate()
    >>> metric.update(torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1, 1]))
    >>> metric.compute()
    tensor(0.6667, dtype=torch.float64)
    >>> low, high = metric.estimate().low, metric.estimate().high
    >>> f"{low:.2f} to {high:.2f}"
    '0.21 to 0.94'
    """

    higher_is_better = True

    def __init__(self, above: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.above = above

    def update(self, scores: Tensor, target: Tensor, rows: Tensor | None = None) -> None:
        """Add a batch: the classifier's scores of counterfactuals (B,K), before softmax; target
        classes (B,) int64.

        rows: (B,) the row that each answer belongs to, where rows have several answers.
        """
        flipped, p = flips(scores, target)
        self.add_rows(flipped if self.above is None else p > self.above, rows)


class AnyFlipRate(RateMetric):
    """Share of rows with at least one answer that the classifier assigns to its target class.

    Range [0,1], higher is better. n counts rows.

    >>> metric = AnyFlipRate()
    >>> scores = torch.tensor([[0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    >>> metric.update(scores, torch.tensor([1, 1, 1]), rows=torch.tensor([0, 0, 1]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def update(self, scores: Tensor, target: Tensor, rows: Tensor) -> None:
        """Add a batch: scores (B,K), before softmax; target classes (B,) int64.

        rows: (B,) the row that each answer belongs to. All answers to a row must be in one batch.
        """
        self.add_rows(any_flipped(floats(flips(scores, target)[0]), numbers_of(rows)))


class TargetProbability(MeanMetric):
    """Mean probability of the target class, by the classifier, over counterfactuals.

    Range [0,1], higher is better.

    >>> metric = TargetProbability()
    >>> metric.update(torch.tensor([[0.0, 0.0], [0.0, 50.0]]), torch.tensor([1, 1]))
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add a batch: scores (B,K), before softmax; target classes (B,) int64."""
        self.add_rows(flips(scores, target)[1])


class SecondClassifierAgreement(RateMetric):
    """Share of answers for which a second classifier predicts the wanted class.

    With the scores and targets of flipped counterfactuals, it measures whether the flips also
    convince a classifier that no method used. Range [0,1], higher is better.

    >>> metric = SecondClassifierAgreement()
    >>> metric.update(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def update(self, scores: Tensor, wanted: Tensor, rows: Tensor | None = None) -> None:
        """Add a batch: the second classifier's scores (B,K); the wanted classes (B,) int64.

        rows: (B,) the row that each answer belongs to, where rows have several answers.
        """
        self.add_rows(agreement(scores, wanted), rows)


class COUT(MeanMetric):
    """COUT: how early the decision changes when the pixels that changed most are copied into the
    original first.

    classifier: images (B,3,H,W) in [0,1] to scores (B,K). The other settings are those of
    `counterfactory.metrics.cout.cout`. Range [-1,1], higher is better. Khorram and Fuxin,
    "Cycle-Consistent Counterfactuals by Latent Transformations", CVPR 2022.

    >>> def bright(images):
    ...     return torch.stack([0.5 - images.mean((1, 2, 3)), images.mean((1, 2, 3)) - 0.5], 1)
    >>> metric = COUT(bright, steps=4)
    >>> black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    >>> metric.update(black, white, source=torch.tensor([0]), target=torch.tensor([1]))
    >>> metric.compute() < 1e-6  # the decision changes half-way
    tensor(True)
    """

    higher_is_better = True

    def __init__(
        self,
        classifier: Classifier,
        *,
        steps: int = 50,
        batch: int = 256,
        reference: bool = False,
        tolerance: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.classifier = classifier
        self.settings = {
            "steps": steps,
            "batch": batch,
            "reference": reference,
            "tolerance": tolerance,
        }

    def update(
        self, original: Tensor, counterfactual: Tensor, source: Tensor, target: Tensor
    ) -> None:
        """Add a batch of pairs (B,3,H,W) in [0,1] on the 8-bit grid.

        source, target: the classes before and the wanted classes, (B,) int64.
        """
        settings: dict[str, Any] = self.settings
        self.add_rows(cout(self.classifier, original, counterfactual, source, target, **settings))
