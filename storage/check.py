"""Checks of a stage's invariants from its commits; every stage ends with them.

`verify` also reads the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from storage.commit import (
    GENERATE,
    commit_path,
    data_path,
    evenly,
    iterate_commits,
    read_commit,
    revisions,
)
from storage.names import COLUMNS, Hashes, doubled, hashes, keys, unpack
from storage.records import Commit, Plan, Shard
from storage.run import read_plan
from storage.tables import damage_named
from storage.uri import Store

NAMED = 10  # duplicate ids named per stage; the others are only counted
TWICE = "expected each id and k once"


def check_stage(store: Store, stage: str, *, whole: bool = True) -> list[str]:
    """Return a line for each invariant of a stage that its commits break; [] where all hold.

    whole: also report shards without a commit. The expected shards are the plan's; after `generate`
    they are the ones that `generate` committed.

    Checks that the plan has no hole; each of its shards has a commit and no other shard has one;
    rows_in = rows_out + quarantined; rows_in is the plan's count, or after `generate` the count
    that `generate` committed; every row has the same number of answers; every committed data file
    is there in the committed size; no id is there twice with the same k. Only `verify` checks that
    the files have the committed bytes and hold the rows that the commits describe. Reads the
    commits, lists one folder, opens data files only to name duplicate ids, and holds 8 bytes a row.
    """
    plan = read_plan(store)
    planned = {shard.index: shard for shard in plan.shards}
    given = {index: shard.rows for index, shard in planned.items()}
    lines = list(plan_lines(plan))
    found: dict[int, Hashes] = {}
    try:
        if stage != GENERATE:
            given = {commit.shard.index: commit.rows for commit in iterate_commits(store, GENERATE)}
        files: dict[int, tuple[str, int]] = {}
        each: dict[int, int] = {}
        for commit in iterate_commits(store, stage):
            index = commit.shard.index
            told = list(commit_lines(commit, planned.get(index), given.get(index)))
            lines += [f"{stage}: shard {index}: {line}" for line in told]
            found[index] = _ids(store, commit) if not told else np.zeros(0, np.uint64)
            files[index] = data_path(commit), commit.bytes
            each |= answers_each(commit)
        sizes = store.sizes(f"data/{stage}")  # after the commits: another driver may be at work
        lines += [
            f"{stage}: shard {index}: {line}"
            for index in files
            for line in _file_lines(*files[index], sizes)
        ]
        lines += each_lines(stage, each)
    except (ValueError, FileNotFoundError) as error:
        # the commit is damaged, or it has no hashes and its file is missing
        return [*lines, f"{stage}: {error}"]
    lines += open_lines(stage, planned if stage == GENERATE else given, found) if whole else []
    if twice := doubled(list(found.values())):
        some = np.array(sorted(twice), np.uint64)
        there = [index for index, values in found.items() if np.isin(some, values).any()]
        now = revisions(store, stage)
        tables = (
            (index, _names(store, read_commit(store, commit_path(stage, index, now[index]))))
            for index in there
        )
        lines += [f"{stage}: {line}" for line in name_doubled(tables, twice, TWICE, 0)]
    return lines


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield a line for each hole in a plan."""
    offset = 0
    for index, shard in enumerate(plan.shards):
        if (shard.index, shard.offset) != (index, offset):
            got = f"shard {shard.index} at {shard.offset}"
            yield f"plan: expected shard {index} at row {offset}, got {got}"
        offset += shard.rows
    if offset != plan.rows:
        yield f"plan: expected {plan.rows} rows over all shards, got {offset}"


def open_lines(stage: str, planned: Mapping[int, object], done: Iterable[int]) -> list[str]:
    """Return a line with the number of the plan's shards that have no commit; [] if none."""
    count = len(planned.keys() - set(done))
    return [f"{stage}: {count} of {len(planned)} shards have no commit"] if count else []


def commit_lines(commit: Commit, shard: Shard | None, given: int | None) -> Iterator[str]:
    """Yield what is wrong in a commit; shard: the plan's; given: rows that it had to read."""
    bad = len(commit.quarantined)
    if shard is None:
        yield "expected a shard of the plan, got a commit of another"
    elif commit.shard != shard:
        yield f"expected the commit of rows {_range(shard)}, got one of {_range(commit.shard)}"
    if commit.rows_in != commit.rows_out + bad:
        yield (
            f"expected rows_in = rows_out + quarantined, got {commit.rows_in} ="
            f" {commit.rows_out} + {bad}"
        )
    if commit.stage == GENERATE and not evenly(commit.rows, commit.rows_out):
        yield (
            f"expected as many answers to each of {commit.rows_out} rows, got {commit.rows} answers"
        )
    if shard is not None and given is None:
        yield f"expected a commit of {GENERATE} before this one, got none"
    elif shard is not None and commit.rows_in != given:
        yield f"expected {given} rows in, got {commit.rows_in}"


def answers_each(commit: Commit) -> dict[int, int]:
    """Return the number of answers to each row of a shard, by the shard's index.

    Returns {} where the shard has no rows, or its rows have different numbers of answers.
    """
    if not commit.rows_out or not evenly(commit.rows, commit.rows_out):
        return {}
    return {commit.shard.index: commit.rows // commit.rows_out}


def each_lines(stage: str, each: Mapping[int, int]) -> Iterator[str]:
    """Yield the shards whose rows have another number of answers than most shards' rows."""
    usual = Counter(each.values()).most_common(1)
    for index, number in each.items():
        if number != usual[0][0]:
            yield (
                f"{stage}: shard {index}: expected {usual[0][0]} answers to each row, as elsewhere,"
                f" got {number}"
            )


def name_doubled(
    tables: Iterable[tuple[int, pa.Table]], twice: set[int], what: str, part: int
) -> list[str]:
    """Return lines that name the duplicates, from a second read of the rows.

    The second read is needed because the 64-bit hashes only show where to look. tables: by shard;
    part: 0 for (id, k), 1 for cf_id.
    """
    where: dict[str, Counter[int]] = {}
    for index, table in tables:
        names = keys(table)[part]
        for key, value in zip(names, hashes(names), strict=True):
            if int(value) in twice:
                where.setdefault(key, Counter())[index] += 1
    lines = [
        f"{what}, got {key} {shards.total()} times, in shards {sorted(shards)}"
        for key, shards in sorted(where.items())
        if shards.total() > 1
    ]
    return lines[:NAMED] + (
        [f"and {len(lines) - NAMED} more doubled"] if len(lines) > NAMED else []
    )


def _file_lines(path: str, size: int, sizes: Mapping[str, int]) -> Iterator[str]:
    if sizes.get(path) != size:
        yield f"{path}: expected a file of {size} bytes, got {sizes.get(path, 'none')}"


def _ids(store: Store, commit: Commit) -> Hashes:
    """Return a commit's hashes; for a commit from before hashes, computes them from its file."""
    return unpack(commit.ids) if commit.ids is not None else hashes(keys(_names(store, commit))[0])


def _names(store: Store, commit: Commit) -> pa.Table:
    """Read the columns of a committed file that name its rows."""
    path = data_path(commit)
    with damage_named(store.url(path)), store.parquet(path) as file:
        return file.read(
            columns=[name for name in COLUMNS if name in file.schema_arrow.names], use_threads=False
        )


def _range(shard: Shard) -> str:
    return f"{shard.start}+{shard.rows} of {shard.file} ({shard.version})"
