"""Base classes of this package's metrics, whose states are sums."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from counterfactory.metrics import means, rates
from counterfactory.metrics.estimate import Estimate
from counterfactory.metrics.means import MeanSums
from counterfactory.metrics.rates import RateSums
from counterfactory.metrics.sums import Sums

S = TypeVar("S", bound=Sums)


class SumMetric(Metric):
    """A metric whose states are the fields of a dataclass of sums; the jobs add the same sums."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # MetricCollection lets metrics share their states from then on where the states are equal
        # after the first batch. With other settings or networks they may be equal by chance. NaN is
        # never equal.
        self.add_state("unshared", torch.tensor(torch.nan), dist_reduce_fx="sum")

    def hold(self, zero: Sums, prefix: str = "") -> None:
        """Make a state of every field.

        zero: the sums of no rows. prefix: of the states' names, where a metric has several sums.
        """
        for field in fields(zero):
            value = torch.as_tensor(np.asarray(getattr(zero, field.name)))
            self.add_state(f"{prefix}{field.name}", value.clone(), dist_reduce_fx="sum")

    def add(self, more: Sums, prefix: str = "") -> None:
        """Add a batch's sums to the states."""
        for field in fields(more):
            state = getattr(self, f"{prefix}{field.name}")
            value = torch.as_tensor(np.asarray(getattr(more, field.name)))
            setattr(self, f"{prefix}{field.name}", state + value.to(state.device))

    def held(self, kind: type[S], prefix: str = "") -> S:
        """Return the states as sums of a kind."""
        values = [
            getattr(self, f"{prefix}{field.name}").detach().cpu().numpy() for field in fields(kind)
        ]
        return kind(*(value if value.ndim else value.item() for value in values))

    def estimate(self) -> Estimate:
        """Return the figure and n, with a 95 % interval where it needs no bootstrap replicates."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Return the figure as a float64 scalar; NaN where there are no rows."""
        value = self.estimate().value
        return torch.tensor(float("nan") if value is None else value, dtype=torch.float64)


class MeanMetric(SumMetric):
    """A mean over rows. Its states are n and total."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hold(MeanSums.zero(0))

    def add_rows(self, values: Tensor | np.ndarray[Any, Any]) -> None:
        """Add values (B,), NaN where a row was not measured."""
        found = np.asarray(torch.as_tensor(values).detach().cpu(), dtype=np.float64)
        self.add(means.update(found, np.zeros((len(found), 0))))

    def estimate(self) -> Estimate:
        """Return the mean and n."""
        return means.compute(self.held(MeanSums))


class RateMetric(SumMetric):
    """A share of rows.

    Its states are n, hits and again (the number of further answers to rows already counted).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hold(RateSums())

    def add_rows(self, values: Tensor | np.ndarray[Any, Any], rows: Tensor | None = None) -> None:
        """Add values (B,) of 0, 1, or NaN where an answer was not measured.

        rows: (B,) the row that each answer belongs to, where rows have several answers. All answers
        to a row must be in one batch.
        """
        found = np.asarray(torch.as_tensor(values).detach().cpu(), dtype=np.float64)
        self.add(rates.update(found, None if rows is None else numbers_of(rows)))

    def estimate(self) -> Estimate:
        """Return the share with Wilson's interval, and n."""
        return rates.compute(self.held(RateSums))


def numbers_of(rows: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows as consecutive numbers from 0, (B,) int64."""
    return np.unique(rows.detach().cpu().numpy(), return_inverse=True)[1].astype(np.int64)


def floats(values: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a tensor as a float64 NumPy array."""
    return values.detach().cpu().double().numpy()
