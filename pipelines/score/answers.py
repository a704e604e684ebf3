"""Rows with several answers: which figures count answers, which count rows, and what their
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
# Answers flip, rows do not: for the diversity of a row's answers, a subset selects answers.
MEANT: dict[Subset, Subset] = {"all": "flipped", "correct": "correct & flipped"}


@dataclass
class AnswerSums:
    """Number of rows, most answers to one row, and diversity of flipped answers."""

    rows: int = 0
    each: int = 0
    diversity: table.Sums = field(default_factory=dict)

    def add(self, ids: Sequence[str], numbers: Mapping[str, Floats], weights: Floats) -> None:
        """Add a shard. numbers: with `k`, and with the diversity of flipped answers where it was
        measured; weights: (B,R).
        """
        self.rows += len(set(ids))
        self.each = max(self.each, len(ids) and int(numbers["k"].max()) + 1)
        if "lpips_diversity_flipped" in numbers:
            found = table.update([OF_FLIPPED], numbers, weights)
            self.diversity = table.add(self.diversity, found) if self.diversity else found

    def to_json(self) -> dict[str, int]:
        """Return the counts for the table's JSON."""
        return {"rows": self.rows, "each": self.each}

    def select(self, measures: Sequence[Measure]) -> list[Measure]:
        """Return the measures without those that are meaningless where rows have one answer."""
        return [m for m in measures if self.each > 1 or not m.of_rows]

    def of_flipped(self, measures: Sequence[Measure]) -> list[tuple[Measure, Subset, Estimate]]:
        """Return the diversity of flipped answers under the name of that of all answers, by subset
        of answers.
        """
        return [
            (m, meant, table.compute(self.diversity, OF_FLIPPED, subset))
            for m in measures
            for subset, meant in MEANT.items()
            if m.column == "lpips_diversity" and self.diversity
        ]

    def note(self, column: str) -> str:
        """Return what a reader must know about a figure; "" where rows have one answer."""
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
    """Return whether a measure has figures for a subset."""
    return not measure.of_rows or subset in MEANT


def rows_of(ids: Sequence[str]) -> NDArray[np.int64] | None:
    """Return the number of the row that each answer belongs to, (B,), in any numbering; None where
    every row has one answer.
    """
    numbers = np.unique(np.asarray(ids, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    return numbers if len(ids) and int(numbers.max()) + 1 < len(ids) else None
