"""What an answer cost to find, as the method counted it."""

from __future__ import annotations

from counterfactory.metrics.estimate import Measure

MEASURES = (
    Measure("seconds", "seconds", "mean", "all", "lower", "s per row"),
    Measure("forward", "forward", "mean", "all", "lower", "evaluations per row"),
    Measure("backward", "backward", "mean", "all", "lower", "evaluations per row"),
)
