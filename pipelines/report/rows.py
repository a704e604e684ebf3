"""Reads the few rows that a report shows a second time: images, scores and all their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report.data import COLUMNS, GENERATE, Pick, RunData, rank
from storage.commit import commit_path, read_commit, read_committed, revisions


def fetch(
    run: RunData, picks: Sequence[Pick], columns: Sequence[str], stage: str = GENERATE
) -> dict[str, dict[str, Any]]:
    """Return further columns of the picked rows, by cf_id.

    Reads one shard at a time. Skips rows that the stage has not reached.
    """
    found: dict[str, dict[str, Any]] = {}
    there = revisions(run.store, stage)
    for shard in sorted({pick.shard for pick in picks} & there.keys()):
        commit = read_commit(run.store, commit_path(stage, shard, there[shard]))
        wanted = pa.array([pick.row["cf_id"] for pick in picks if pick.shard == shard])
        table = read_committed(run.store, commit, columns=["cf_id", *columns])
        for row in table.filter(pc.is_in(table["cf_id"], value_set=wanted)).to_pylist():
            found[row["cf_id"]] = row
    return found


def answers_to(run: RunData, picks: Sequence[Pick]) -> dict[str, list[Pick]]:
    """Return all answers to the picked rows, by the row's id, sorted by k. Reads one shard at a
    time.
    """
    found: dict[str, list[Pick]] = {}
    there = revisions(run.store, GENERATE)
    for shard in sorted({pick.shard for pick in picks} & there.keys()):
        table = read_committed(
            run.store, read_commit(run.store, commit_path(GENERATE, shard, there[shard])), COLUMNS
        )
        wanted = pa.array([pick.row["id"] for pick in picks if pick.shard == shard])
        for row in table.filter(pc.is_in(table["id"], value_set=wanted)).sort_by("k").to_pylist():
            found.setdefault(row["id"], []).append(Pick(rank(row["id"]), row["k"], shard, row))
    return found
