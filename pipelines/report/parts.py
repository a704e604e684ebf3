"""A run's further parts in a report: the judge's means, the augmentation set's counts, JSON
files.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pipelines.augment.calibration import CALIBRATION, describe
from pipelines.augment.reviewed import read_reviewed
from storage.products import read_batches
from storage.seal import read_sealed
from storage.uri import Store

MODELS = b"models"  # in the metadata of judge/scores.parquet
JUDGED = ("validity", "sparsity", "proximity", "realism")


def judge_means(store: Store) -> dict[str, tuple[float, int]]:
    """Return mean and n of each judged criterion; empty where no answers have been parsed."""
    if not store.exists("judge/scores.parquet"):
        return {}
    sums = dict.fromkeys(JUDGED, 0.0)
    seen: Counter[str] = Counter()
    for batch in read_batches(store, "judge/scores.parquet", list(JUDGED)):
        for name in batch.schema.names:
            values = batch.column(name).drop_null().to_numpy(zero_copy_only=False).astype(float)
            sums[name] += float(values.sum())
            seen[name] += len(values)
    return {name: (sums[name] / seen[name], seen[name]) for name in JUDGED if seen[name]}


def judge_models(store: Store) -> list[str]:
    """Return the names of the models that judged live; empty where they are not known."""
    if not store.exists("judge/scores.parquet"):
        return []
    with store.parquet("judge/scores.parquet") as file:
        told = (file.metadata.metadata or {}).get(MODELS)
    return list(json.loads(told)) if told else []


def calibration_lines(store: Store) -> list[str]:
    """Return sentences on a judge's agreement with oracle and reviewers; [] without a judge."""
    table = read_json(store, CALIBRATION)
    return [] if table is None else describe(table)


def review_counts(store: Store) -> dict[str, int] | None:
    """Return the rows that people reviewed, and those of each verdict by their majority; None
    where there are none.
    """
    found = read_reviewed(store)
    counts = Counter(verdict or "without a majority" for verdict in found.values())
    return {"rows": len(found), **counts} if found else None


def augment_counts(store: Store) -> dict[str, Any] | None:
    """Return the numbers of rows and files of the augmentation set, from the files' footers."""
    files = [path for path in store.list("augment") if path.endswith(".parquet")]
    if not files:
        return None
    rows = 0
    for path in files:
        with store.parquet(path) as file:
            rows += file.metadata.num_rows
    return {"files": len(files), "rows": rows}


def read_json(store: Store, path: str) -> dict[str, Any] | None:
    """Return the content of a JSON file; None where the run has none.

    BadRecord where the file is damaged.
    """
    try:
        return read_sealed(store, path)
    except FileNotFoundError:
        return None
