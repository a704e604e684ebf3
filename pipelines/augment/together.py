"""How labels and attributes go together, in the originals and in the training set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from counterfactory.metrics import together
from counterfactory.metrics.together import TogetherSums

AT_ONCE = 1024  # rows whose counts are added together
Row = dict[str, Any]


class LabelsByAttributes:
    """Counts of rows by label and attribute, before (originals) and after (the set).

    An attribute is there where its probability by the oracle is more than `threshold`. Rows without
    attributes do not count.
    """

    def __init__(self, classes: Sequence[str], names: Sequence[str], threshold: float) -> None:
        self.classes, self.names, self.threshold = list(classes), list(names), threshold
        self.sums: dict[str, TogetherSums] = {}
        self.waiting: dict[str, list[tuple[float, list[float]]]] = {}

    def add(self, side: str, label: int | None, attributes: Sequence[float] | None) -> None:
        """Add one row to a side: its class index, None where not known, and its probabilities."""
        if attributes is None or not self.names:
            return
        waiting = self.waiting.setdefault(side, [])
        waiting.append((np.nan if label is None else float(label), list(attributes)))
        if len(waiting) == AT_ONCE:
            self._count(side)

    def _count(self, side: str) -> None:
        rows = self.waiting.pop(side, [])
        if not rows:
            return
        labels = np.array([label for label, _ in rows])
        seen = np.array([values for _, values in rows]) > self.threshold
        _, columns = together.class_columns(labels, self.classes)
        more = together.update(np.concatenate([columns, seen.astype(np.float64)], axis=1))
        self.sums[side] = self.sums[side] + more if side in self.sums else more

    def table(self) -> dict[str, Any] | None:
        """Return the table of each class and attribute; None where no original has both.

        `of`: whose classes `before` counts, the data's labels or, where no row has one, the
        predicted classes. `before`, `after`, `both` (the two together) have phi, n and the 2x2
        `rows`: without and with the class, each without and with the attribute.
        """
        for side in list(self.waiting):
            self._count(side)
        # columns of a label that no row has are not known in any row
        labelled = "label" in self.sums and bool(self.sums["label"].n[0, 0])
        of = "label" if labelled else "source"
        if of not in self.sums:
            return None
        before = self.sums[of]
        zero = TogetherSums(*(np.zeros_like(part) for part in (before.n, before.ones, before.both)))
        after = self.sums.get("after", zero)
        sides = {"before": before, "after": after, "both": before + after}
        classes = self.classes[1:] if len(self.classes) == 2 else self.classes
        return {
            "of": of,
            "pairs": [
                {
                    "class": name,
                    "attribute": attribute,
                    **{side: _cells(sums, i, len(classes) + j) for side, sums in sides.items()},
                }
                for i, name in enumerate(classes)
                for j, attribute in enumerate(self.names)
            ],
        }


def _cells(sums: TogetherSums, i: int, j: int) -> dict[str, Any]:
    n, both = int(sums.n[i, j]), int(sums.both[i, j])
    of_class, with_it = int(sums.ones[i, j]), int(sums.ones[j, i])
    rows = [[n - of_class - with_it + both, with_it - both], [of_class - both, both]]
    return {"phi": round(float(together.phi(sums)[i, j]), 4), "n": n, "rows": rows}
