"""What a metric comes to, and what must be known to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Subset = Literal["all", "correct", "flipped", "correct & flipped"]
SUBSETS: tuple[Subset, ...] = ("all", "correct", "flipped", "correct & flipped")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval over n rows; None, never NaN, where there is none."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""


NOTHING = Estimate(None, None, None, 0, "n = 0")


@dataclass(frozen=True)
class Measure:
    """A figure: how numbers of rows become one number, and how tables and reports show it.

    kind: a `rate` of rows (0 or 1 each) has Wilson's interval, a `mean` a bootstrap's; a `set` has
    no column, being of all rows at once. subset: the rows of its main line. better: which direction
    is good, None where neither is. label, help: of the report; written: as a percentage, a number
    or a time (default by kind); axis: of its interval, default [0,1] of a percentage and else from
    0 to the largest. needs: what a run must have besides what the metric needs. derive: the
    function (of this package) that makes the column from stored columns, `reads`; "" where the
    column is stored. lacks: the column whose missing rows the note counts, default the figure's
    own. of_rows: the number is a row's, whatever the number of answers to it.
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
        """rate, number or seconds: how the value is written."""
        return self.written or ("rate" if self.kind == "rate" else "number")

    @property
    def span(self) -> tuple[float, float] | None:
        """The axis of its interval; None: from 0 to the largest."""
        return self.axis or ((0.0, 1.0) if self.form == "rate" else None)
