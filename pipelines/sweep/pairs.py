"""Compares two cells of a sweep on the same rows.

It computes the difference of their scores for each row, with a bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from counterfactory.metrics import means
from counterfactory.metrics.estimate import Measure
from counterfactory.metrics.means import MeanSums, bootstrap_weights
from pipelines.engine.committed import load_plan, scored_stage
from pipelines.score.columns import floats
from storage.commit import iterate_commits, read_committed
from storage.records import Commit
from storage.uri import Store


def pairs(
    names: Sequence[str], stores: Sequence[Store], measures: Sequence[Measure], replicates: int
) -> list[dict[str, Any]]:
    """Return the mean of (first - second) for every two cells and each measure.

    The mean is over the rows that both cells scored. Where a row has several answers, its value is
    their mean. better: the cell that the interval favours, "" where the interval contains 0. Two
    cells with different data have no row in common and are skipped.
    """
    out = []
    for (a, one), (b, other) in combinations(zip(names, stores, strict=True), 2):
        sums = {measure.name: MeanSums.zero(replicates) for measure in measures}
        for left, right in _same_rows(one, other, [measure.column for measure in measures]):
            weights = bootstrap_weights(left["id"].to_pylist(), replicates)
            for measure in measures:
                # A row without a score (NaN) in one cell is not in the mean of either.
                difference = floats(left[measure.column]) - floats(right[measure.column])
                sums[measure.name] += means.update(difference, weights)
        for measure in measures:
            found = means.compute(sums[measure.name])
            if not found.n:
                continue
            line = {
                "metric": measure.name,
                "first": a,
                "second": b,
                "n": found.n,
                "difference": found.value,
            }
            line |= {
                "low": found.low,
                "high": found.high,
                "better": _favour(found.low, found.high, measure, a, b),
            }
            out.append(line)
    return out


def _favour(low: float | None, high: float | None, measure: Measure, a: str, b: str) -> str:
    if measure.better is None or low is None or high is None or low <= 0 <= high:
        return ""
    return a if (low > 0) == (measure.better == "higher") else b


def _same_rows(one: Store, other: Store, columns: list[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Return the rows that two runs both scored, in the same order, shard by shard.

    Returns all rows at once where the shards of the runs differ.
    """
    wanted = list(dict.fromkeys(["id", "k", *columns]))
    left, right = (
        {commit.shard.index: commit for commit in _commits(store)} for store in (one, other)
    )
    if load_plan(one).shards == load_plan(other).shards:
        for index in sorted(left.keys() & right.keys()):
            yield _joined(_rows(one, left[index], wanted), _rows(other, right[index], wanted))
    elif left and right:
        whole = ((one, left), (other, right))
        yield _joined(
            *(
                pa.concat_tables([_rows(store, c, wanted) for c in made.values()])
                for store, made in whole
            )
        )


def _commits(store: Store) -> Iterator[Commit]:
    return iterate_commits(store, scored_stage(store))


def _rows(store: Store, commit: Commit, columns: list[str]) -> pa.Table:
    """Return a shard's columns with one line per row."""
    table = read_committed(store, commit, columns)
    first = pc.equal(table["k"], 0)
    if pc.all(first).as_py() is not False:  # None: no rows
        return table
    numbers = table.select([name for name in table.column_names if name not in ("id", "k")])
    means = pa.table(
        [pa.array(floats(column), from_pandas=True) for column in numbers.columns],
        numbers.column_names,
    )
    grouped = means.append_column("id", table["id"]).group_by("id", use_threads=False)
    # skips nulls
    found = grouped.aggregate([(name, "mean") for name in numbers.column_names])
    return found.rename_columns([name.removesuffix("_mean") for name in found.column_names])


def _joined(left: pa.Table, right: pa.Table) -> tuple[pa.Table, pa.Table]:
    at = {key: place for place, key in enumerate(right["id"].to_pylist())}
    places = [(i, at[key]) for i, key in enumerate(left["id"].to_pylist()) if key in at]
    return left.take([i for i, _ in places]), right.take([j for _, j in places])
