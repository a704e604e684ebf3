"""The invariants of a run, checked from what is stored and nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from storage.check import (
    NAMED,
    TWICE,
    answers_each,
    commit_lines,
    each_lines,
    name_doubled,
    open_lines,
    plan_lines,
)
from storage.commit import GENERATE, commit_path, data_path, read_commit, revisions, stages
from storage.names import COLUMNS, Hashes, doubled, hashes, keys, unpack
from storage.records import Commit, Plan
from storage.run import read_plan
from storage.uri import Store

DAMAGE = (
    ValueError,
    FileNotFoundError,
)  # other OSErrors say nothing about the run: they are raised


def verify(store: Store) -> list[str]:
    """Each broken invariant as a line; [] if all hold.

    Of every stage: each shard of the plan has a commit and no other has; rows_in = rows_out +
    quarantined; rows_in is what the plan gave, or after `generate` what generate committed; the
    data file has the committed sha256, size and rows; no cf_id twice, no id twice with the same k;
    each row has its answers 0 to k-1, the same k in all shards; a revision has every row of the one
    before. Holds one shard and 16 bytes a row in memory.
    """
    plan = read_plan(store)
    lines = list(plan_lines(plan))
    given = {shard.index: shard.rows for shard in plan.shards}
    for stage in dict.fromkeys([GENERATE, *stages(store)]):
        found, rows = _stage_lines(store, plan, stage, given)
        lines += found
        given = rows if stage == GENERATE else given
    return lines


def _stage_lines(
    store: Store, plan: Plan, stage: str, given: dict[int, int]
) -> tuple[list[str], dict[int, int]]:
    """Broken invariants of a stage, and the rows of each of its shards; given: rows that each shard
    was to read.
    """
    planned = {shard.index: shard for shard in plan.shards}
    done = revisions(store, stage)
    lines = open_lines(stage, planned, done)
    lines += _revision_lines(store, done) if stage == GENERATE else []
    rows: dict[int, int] = {}
    ids: list[Hashes] = []
    answers: list[Hashes] = []
    each: dict[int, int] = {}
    for index, revision in done.items():
        where = f"{stage}: shard {index}"
        try:
            commit = read_commit(store, commit_path(stage, index, revision))
            lines += [
                f"{where}: {line}"
                for line in commit_lines(commit, planned.get(index), given.get(index))
            ]
            rows[index] = commit.rows
            each |= answers_each(commit)
            table = _table(store, commit)
        except DAMAGE as error:
            lines.append(f"{where}: {' '.join(str(error).split()) or type(error).__name__}")
            continue
        lines += [f"{where}: {line}" for line in _table_lines(commit, table, stage)]
        pairs, names = keys(table)
        ids.append(hashes(pairs))
        answers.append(hashes(names))
    lines += each_lines(stage, each)
    for what, parts, part in ((TWICE, ids, 0), ("expected each cf_id once", answers, 1)):
        if twice := doubled(parts):
            lines += [
                f"{stage}: {line}"
                for line in name_doubled(_tables(store, stage, done), twice, what, part)
            ]
    return lines, rows


def _table_lines(commit: Commit, table: pa.Table, stage: str) -> Iterator[str]:
    if table.num_rows != commit.rows:
        yield f"expected {commit.rows} rows in its file, got {table.num_rows}"
    ids = set(table["id"].to_pylist()) if "id" in table.column_names else set()
    answered = len(ids) if stage == GENERATE and ids else table.num_rows
    if answered != commit.rows_out:
        yield f"expected {commit.rows_out} rows answered in its file, got {answered}"
    elif {"id", "k"} <= set(table.column_names):
        yield from _answer_lines(table)


def _answer_lines(table: pa.Table) -> Iterator[str]:
    """Rows of which an answer is missing, by what the other rows of the file have; doubled ones are
    told elsewhere.
    """
    found: dict[str, set[int]] = {}
    for name, k in zip(table["id"].to_pylist(), table["k"].to_pylist(), strict=True):
        found.setdefault(name, set()).add(k)
    most = Counter(len(ks) for ks in found.values()).most_common(1)
    wanted = set(range(most[0][0])) if most else set()
    lines = [
        f"expected answers 0 to {len(wanted) - 1} to row {name}, got"
        f" {', '.join(map(str, sorted(ks))) or 'none'}"
        for name, ks in found.items()
        if ks != wanted
    ]
    yield from lines[:NAMED]
    if len(lines) > NAMED:
        yield f"and {len(lines) - NAMED} more rows without all their answers"


def _table(store: Store, commit: Commit) -> pa.Table:
    """The naming columns of a committed file, once its bytes are the ones committed."""
    path = data_path(commit)
    data = store.read(path)
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (commit.bytes, commit.sha256):
        told = (
            f"expected {commit.bytes} bytes with sha256 {commit.sha256}, got {len(data)} with"
            f" {digest}"
        )
        raise ValueError(f"{path}: {told}")
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        return (
            file.read(columns=columns, use_threads=False)
            if columns
            else file.read(use_threads=False)
        )


def _tables(store: Store, stage: str, done: Mapping[int, int]) -> Iterator[tuple[int, pa.Table]]:
    """The naming columns of each shard; those that are damaged, and named so already,
    are left out."""
    for index, revision in done.items():
        with suppress(*DAMAGE):
            yield index, _table(store, read_commit(store, commit_path(stage, index, revision)))


def _revision_lines(store: Store, done: Mapping[int, int]) -> list[str]:
    """Rows that were answered and that the revision which counts no longer has."""
    lines = []
    for index, revision in done.items():
        for earlier in range(revision):
            where = f"{GENERATE}: shard {index}: revision {revision}"
            try:
                before, now = (
                    read_commit(store, commit_path(GENERATE, index, r)) for r in (earlier, revision)
                )
                missing = len(np.setdiff1d(unpack(before.ids or ""), unpack(now.ids or "")))
            except DAMAGE as error:
                lines.append(f"{where}: {' '.join(str(error).split()) or type(error).__name__}")
                continue
            if missing:
                lines.append(
                    f"{where}: expected every row of revision {earlier}, got {missing} fewer"
                )
    return lines
