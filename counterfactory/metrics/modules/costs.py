"""Metrics of what answers cost, and of the scores by a vision-language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from counterfactory.metrics.flops import tflops
from counterfactory.metrics.judge import CRITERIA
from counterfactory.metrics.modules.states import MeanMetric


class MeanCost(MeanMetric):
    """Mean cost per row: seconds, forward evaluations or backward evaluations.

    Lower is better.

    >>> metric = MeanCost()
    >>> metric.update(torch.tensor([0.5, 1.5]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False

    def update(self, costs: Tensor) -> None:
        """Add a batch of costs (B,), NaN where a cost is not known."""
        self.add_rows(costs)


class TFLOPs(MeanMetric):
    """Mean tera floating-point operations of a call, as torch counts them.

    Only matrix products, convolutions and attention count. Lower is better.

    >>> metric = TFLOPs()
    >>> metric.update(lambda: torch.ones(100, 100) @ torch.ones(100, 100))
    >>> f"{metric.compute():.1e}"  # 2 * 100^3 / 10^12
    '2.0e-06'
    """

    higher_is_better = False

    def update(self, work: Callable[[], object]) -> None:
        """Add the operations of one call."""
        self.add_rows(torch.tensor([tflops(work)], dtype=torch.float64))


class JudgeScore(MeanMetric):
    """Mean score by a vision-language model: validity, sparsity, proximity and realism.

    criterion: the one of these to use; None uses the mean of the four. Range 1 to 10, higher is
    better. ValueError where the criterion is unknown.

    >>> metric = JudgeScore()
    >>> metric.update(torch.tensor([[8.0, 6.0, 7.0, 7.0]]))
    >>> metric.compute()
    tensor(7., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, criterion: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if criterion is not None and criterion not in CRITERIA:
            raise ValueError(f"criterion: expected {', '.join(CRITERIA)}, got {criterion!r}")
        self.criterion = criterion

    def update(self, scores: Tensor) -> None:
        """Add a batch of scores (B,4) in the order above, NaN where an answer was not parsed."""
        chosen = scores.double()
        self.add_rows(
            chosen.mean(1) if self.criterion is None else chosen[:, CRITERIA.index(self.criterion)]
        )
