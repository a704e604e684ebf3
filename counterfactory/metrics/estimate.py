"""The result of a metric with its interval, and the declaration of a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Subset = Literal["all", "correct", "flipped", "correct & flipped"]
SUBSETS: tuple[Subset, ...] = ("all", "correct", "flipped", "correct & flipped")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval over n rows. Missing values are None, never NaN."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""


NOTHING = Estimate(None, None, None, 0, "n = 0")


@dataclass(frozen=True)
class Measure:
    """A figure: how the numbers of rows become one number, and how tables and reports show it.

    kind: a `rate` of rows (0 or 1 each) has Wilson's interval; a `mean` has a bootstrap's; a `set`
    has no column, because it is computed from all rows at once. subset: the rows of its main line.
    better: the better direction, None where neither is. label, help: texts for the report. written:
    as a percentage, a number or a time; the default follows from kind. axis: the range of the
    interval's axis; the default is [0,1] for a percentage, and otherwise from 0 to the largest
    value. needs: what a run must have besides the metric's own needs. derive: the function (of this
    package) that computes the column from the stored columns `reads`; "" where the column is
    stored. lacks: the column whose missing rows the note counts; default: the figure's own column.
    of_rows: there is one number per row, not one per answer.
    """

    name: str
    column: str
    kind: Literal["rate", "mean", "set"]
    subset: Subset
    better: Literal["higher", "lower"] | None
    unit: str = ""
    label: str = ""
    help: str = ""
    written: Literal["", "rate", "number", "seconds"] = ""
    axis: tuple[float, float] | None = None
    needs: tuple[str, ...] = ()
    derive: str = ""
    reads: tuple[str, ...] = ()
    lacks: str = ""
    of_rows: bool = False

    @property
    def form(self) -> str:
        """Return how the value is written: rate, number or seconds."""
        return self.written or ("rate" if self.kind == "rate" else "number")

    @property
    def span(self) -> tuple[float, float] | None:
        """Return the axis of its interval; None means from 0 to the largest value."""
        return self.axis or ((0.0, 1.0) if self.form == "rate" else None)
