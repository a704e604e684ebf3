"""Metrics of the attributes that changed, as an oracle of attributes predicts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from counterfactory.metrics import attributes, correlation, importance
from counterfactory.metrics.attributes import AttributeSums
from counterfactory.metrics.correlation import CorrelationSums
from counterfactory.metrics.estimate import Estimate
from counterfactory.metrics.importance import ImportanceSums
from counterfactory.metrics.modules.states import MeanMetric, SumMetric, floats, numbers_of


class MNAC(MeanMetric):
    """MNAC: mean number of attributes that changed.

    query: the column of the attribute that the classifier decides on; it is not counted. None
    counts all attributes. Use flipped pairs only. Lower is better. Rodriguez et al., "Beyond
    Trivial Counterfactual Explanations with Diverse Valuable Explanations", ICCV 2021.

    >>> before, after = torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([[0.8, 0.1, 0.3]])
    >>> metric = MNAC()
    >>> metric.update(before, after)
    >>> metric.compute()
    tensor(2., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, query: int | None = None, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.query, self.threshold = query, threshold

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add a batch: the oracle's probabilities of originals and counterfactuals, (B,A) each."""
        changed = attributes.changes(floats(before), floats(after), self.threshold)
        every, others = attributes.numbers_changed(changed, self.query)
        self.add_rows(every if self.query is None else others)


class CausalShare(MeanMetric):
    """Mean share of the changed attributes that are causal.

    causal: columns of the attributes that should decide. Use flipped pairs only. A pair in which
    nothing changed does not count. Range [0,1], higher is better.

    >>> metric = CausalShare(causal=[0])
    >>> metric.update(torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([[0.8, 0.1, 0.3]]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better: bool | None = True
    part = 0  # of attributes.causal_share

    def __init__(self, causal: Sequence[int], threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.causal, self.threshold = list(causal), threshold

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add a batch: the oracle's probabilities of originals and counterfactuals, (B,A) each."""
        changed = attributes.changes(floats(before), floats(after), self.threshold)
        self.add_rows(attributes.causal_share(changed, self.causal)[self.part])


class CausalChanges(CausalShare):
    """Mean number of causal attributes that changed. The arguments are those of `CausalShare`.

    >>> metric = CausalChanges(causal=[0])
    >>> metric.update(torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([[0.8, 0.1, 0.3]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = None
    part = 1


class SpuriousChanges(CausalShare):
    """Mean number of attributes that changed and are not causal.

    The arguments are those of `CausalShare`. Lower is better.

    >>> metric = SpuriousChanges(causal=[0])
    >>> metric.update(torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([[0.8, 0.1, 0.3]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False
    part = 2


class AttributeChangeRates(SumMetric):
    """Share of pairs in which each attribute changed, (A,) in [0,1].

    attributes: number of attributes that the oracle predicts. Use flipped pairs only.
    `held(AttributeSums)` returns the sums that `counterfactory.metrics.audit.audit` takes.

    >>> metric = AttributeChangeRates(3)
    >>> metric.update(torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([[0.8, 0.1, 0.3]]))
    >>> metric.compute()
    tensor([1., 1., 0.], dtype=torch.float64)
    """

    def __init__(self, attributes: int, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.hold(AttributeSums.zero(attributes))

    def update(self, before: Tensor, after: Tensor, rows: Tensor | None = None) -> None:
        """Add a batch: the oracle's probabilities of originals and counterfactuals, (B,A) each.

        rows: (B,) the row that each answer belongs to, where rows have several answers.
        """
        whose = None if rows is None else numbers_of(rows)
        self.add(attributes.update(floats(before), floats(after), self.threshold, whose))

    def compute(self) -> Tensor:
        """Return the rates (A,), float64; NaN where there are no rows."""
        sums = self.held(AttributeSums)
        return torch.from_numpy(sums.changed).double() / (sums.n or torch.nan)


class CorrelationDifference(SumMetric):
    """CD: sum over attributes of abs(corr_cf - corr_data), the correlation difference.

    Both are Pearson's correlations with the query attribute: corr_cf of the changes (-1, 0, 1),
    corr_data of the labels. query: that attribute's column. labels: (N,A) of 0 and 1 from the
    data's training split; None takes the oracle's predictions of the originals. target: whether the
    query attribute's own difference counts, as in public code. Use flipped pairs only. Lower is
    better. Jeanneret et al., "Diffusion Models for Counterfactual Explanations", ACCV 2022.

    >>> labels = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])  # the data's do not correlate
    >>> metric = CorrelationDifference(attributes=2, query=0, labels=labels)
    >>> before = torch.tensor([[0.1, 0.1], [0.9, 0.9]])
    >>> metric.update(before, 1 - before)
    >>> metric.compute()  # both attributes always change together
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(
        self,
        attributes: int,
        query: int,
        labels: Tensor | None = None,
        *,
        target: bool = True,
        threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.query, self.target, self.threshold = query, target, threshold
        self.labels = None if labels is None else self._sums(floats(labels))
        zero = CorrelationSums.zero(attributes, 0)
        self.hold(zero, "changes_")
        self.hold(zero, "originals_")

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add a batch: the oracle's probabilities of originals and counterfactuals, (B,A) each."""
        seen, then = floats(before), floats(after)
        self.add(self._sums(correlation.signed_changes(seen, then, self.threshold)), "changes_")
        self.add(self._sums((seen > self.threshold).astype(np.float64)), "originals_")

    def estimate(self) -> Estimate:
        """Return the difference and n."""
        data = self.labels or self.held(CorrelationSums, "originals_")
        changes = self.held(CorrelationSums, "changes_")
        return correlation.compute(changes, data, self.query, target=self.target).estimate

    def _sums(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> CorrelationSums:
        return correlation.update(values, self.query, np.zeros((len(values), 0)))


class GlobalImportance(SumMetric):
    """Global importances: mean change of each descriptor by the counterfactuals, (D,).

    descriptors: number of descriptors. Goldwasser and Hooker, 2025.

    >>> metric = GlobalImportance(2)
    >>> metric.update(torch.tensor([[1.0, -0.5], [0.0, -1.5]]))
    >>> metric.compute()
    tensor([ 0.5000, -1.0000], dtype=torch.float64)
    """

    def __init__(self, descriptors: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hold(ImportanceSums.zero(descriptors, 0))

    def update(self, importances: Tensor) -> None:
        """Add a batch of importances (B,D). All must be finite."""
        self.add(importance.update(floats(importances), np.zeros((len(importances), 0))))

    def compute(self) -> Tensor:
        """Return the means (D,), float64; NaN where there are no rows."""
        sums = self.held(ImportanceSums)
        return torch.from_numpy(sums.total) / (sums.n or torch.nan)
