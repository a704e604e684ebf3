"""The judge's scores of each row by cf_id, in 50 bytes an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.judge import CRITERIA
from pipelines.judge.job import SCORES
from storage.products import read_batches
from storage.uri import Store

JUDGED = tuple(f"judge_{name}" for name in CRITERIA)  # columns of the set


@dataclass(frozen=True)
class Judged:
    """The answers that have scores, sorted by cf_id; several of one cf_id are repeats.

    ids: (N,) bytes; values: (N,4) scores in the order of CRITERIA.
    """

    ids: NDArray[np.bytes_]
    values: NDArray[np.float64]

    def of(self, names: Sequence[str]) -> list[NDArray[np.float64] | None]:
        """Return the scores of each row, (R,4) for R repeats; None where it has none."""
        asked = np.array([name.encode() for name in names], dtype=np.bytes_)
        first = np.searchsorted(self.ids, asked, "left")
        after = np.searchsorted(self.ids, asked, "right")
        return [
            self.values[start:end] if end > start else None
            for start, end in zip(first, after, strict=True)
        ]


def read_judged(store: Store) -> Judged:
    """Return the scores of a run's judge; empty where no answers were parsed."""
    ids, values = [np.zeros(0, "S1")], [np.zeros((0, len(CRITERIA)))]
    if store.exists(SCORES):
        for batch in read_batches(store, SCORES, ["cf_id", "judge", *CRITERIA]):
            rows = batch.filter(batch.column("judge").is_valid())
            names = [name.encode() for name in rows.column("cf_id").to_pylist()]
            ids.append(np.array(names, dtype=np.bytes_))
            columns = [rows.column(name).to_numpy(zero_copy_only=False) for name in CRITERIA]
            values.append(np.stack(columns, 1).astype(np.float64))
    joined = np.concatenate(ids)
    order = np.argsort(joined, kind="stable")
    return Judged(joined[order], np.concatenate(values)[order])
