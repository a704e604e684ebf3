"""The judge's score of each row by cf_id, in 40 bytes a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.judge.job import SCORES
from storage.products import read_batches
from storage.uri import Store


@dataclass(frozen=True)
class Judged:
    """Mean judge scores, sorted by cf_id; ids: (N,) bytes, values: (N,)."""

    ids: NDArray[np.bytes_]
    values: NDArray[np.float64]

    def of(self, names: Sequence[str]) -> list[float | None]:
        """Return the score of each row; None where it has none."""
        if not len(self.ids):
            return [None] * len(names)
        asked = np.array([name.encode() for name in names], dtype=np.bytes_)
        at = np.minimum(np.searchsorted(self.ids, asked), len(self.ids) - 1)
        known = self.ids[at] == asked
        return [
            float(value) if there else None
            for value, there in zip(self.values[at], known, strict=True)
        ]


def read_judged(store: Store) -> Judged:
    """Return the scores of a run's judge; empty where no answers were parsed."""
    ids, values = [np.zeros(0, "S1")], [np.zeros(0)]
    if store.exists(SCORES):
        for batch in read_batches(store, SCORES, ["cf_id", "judge"]):
            rows = batch.filter(batch.column("judge").is_valid())
            names = [name.encode() for name in rows.column("cf_id").to_pylist()]
            ids.append(np.array(names, dtype=np.bytes_))
            values.append(rows.column("judge").to_numpy(zero_copy_only=False))
    joined = np.concatenate(ids)
    order = np.argsort(joined)
    return Judged(joined[order], np.concatenate(values)[order])
