"""Scores that a vision-language model gave to counterfactuals."""

from __future__ import annotations

from counterfactory.metrics.estimate import Measure

CRITERIA = ("validity", "sparsity", "proximity", "realism")
MEASURES = (
    Measure("judge", "judge", "mean", "all", "higher", "1 to 10"),
    *(Measure(f"judge_{name}", name, "mean", "all", "higher", "1 to 10") for name in CRITERIA),
)
