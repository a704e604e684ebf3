"""Rows with several answers: which figures count an answer, which count a row, and what their
intervals are over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics import table
from counterfactory.metrics.catalogue import FIGURES
from counterfactory.metrics.estimate import Estimate, Measure, Subset

Floats = NDArray[np.float64]
# The diversity of a row's answers, of those that flipped.
OF_FLIPPED = replace(FIGURES["lpips_diversity"], column="lpips_diversity_flipped", subset="flipped")
# A row is neither flipped nor not, so of its answers' diversity the subsets say which answers are
# meant.
MEANT: dict[Subset, Subset] = {"all": "flipped", "correct": "correct & flipped"}


@dataclass
class AnswerSums:
    """Rows, most answers to one of them, and the diversity of flipped answers."""

    rows: int = 0
    each: int = 0
    diversity: table.Sums = field(default_factory=dict)

    def add(self, ids: Sequence[str], numbers: Mapping[str, Floats], weights: Floats) -> None:
        """Add a shard; numbers: with `k`, and its diversity where that was measured; weights:
        (B,R).
        """
        self.rows += len(set(ids))
        self.each = max(self.each, len(ids) and int(numbers["k"].max()) + 1)
        if "lpips_diversity_flipped" in numbers:
            found = table.update([OF_FLIPPED], numbers, weights)
            self.diversity = table.add(self.diversity, found) if self.diversity else found

    def to_json(self) -> dict[str, int]:
        """As the table's JSON has it."""
        return {"rows": self.rows, "each": self.each}

    def select(self, measures: Sequence[Measure]) -> list[Measure]:
        """The measures without those that tell nothing where rows have one answer."""
        return [m for m in measures if self.each > 1 or not m.of_rows]

    def of_flipped(self, measures: Sequence[Measure]) -> list[tuple[Measure, Subset, Estimate]]:
        """The diversity of flipped answers, called as that of all answers is, by the subset of
        answers.
        """
        return [
            (m, meant, table.compute(self.diversity, OF_FLIPPED, subset))
            for m in measures
            for subset, meant in MEANT.items()
            if m.column == "lpips_diversity" and self.diversity
        ]

    def note(self, column: str) -> str:
        """What must be known to read a figure; "" where rows have one answer."""
        if self.each < 2:
            return ""
        if column == "flipped":
            return (
                f"n answers, {self.each} to each of {self.rows} rows; every interval is over rows"
            )
        if column in ("seconds", "forward", "backward"):
            return f"per answer, of which a row has {self.each}"
        return {"any_flipped": "rows of which an answer flipped", "lpips_diversity": "n rows"}.get(
            column, ""
        )


def has_figures(measure: Measure, subset: Subset) -> bool:
    """Has a measure anything to tell of a subset."""
    return not measure.of_rows or subset in MEANT


def rows_of(ids: Sequence[str]) -> NDArray[np.int64] | None:
    """Which row each answer is to, (B,), by any numbers; None where each is to one of its own."""
    numbers = np.unique(np.asarray(ids, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    return numbers if len(ids) and int(numbers.max()) + 1 < len(ids) else None
