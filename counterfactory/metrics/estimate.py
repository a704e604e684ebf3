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
    """How a column of per-row scores is told as a figure.

    kind: a `rate` of rows (0 or 1 each) has Wilson's interval, a `mean` a bootstrap's; a `set` has
    no column, being of all rows at once. subset: over which rows it is told by default; better:
    which direction is good, None where neither is.
    """

    name: str
    column: str
    kind: Literal["rate", "mean", "set"]
    subset: Subset
    better: Literal["higher", "lower"] | None
    unit: str = ""
