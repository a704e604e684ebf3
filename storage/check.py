"""A stage's invariants as far as its commits tell them: what every stage ends with. `verify` reads
the data as well.
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

NAMED = 10  # doubled ids named per stage; the rest is counted
TWICE = "expected each id and k once"


def check_stage(store: Store, stage: str, *, whole: bool = True) -> list[str]:
    """Each invariant of a stage that its commits show broken, as a line; [] if all hold.

    whole: shards without a commit are reported, too: of the plan's, or after `generate` of those it
    has committed.

    Checked: the plan has no hole; each of its shards has a commit and no other has; rows_in =
    rows_out + quarantined; rows_in is what the plan gave, or after `generate` what generate
    committed; every row has as many answers; every committed data file is there, in the committed
    size; no id twice with the same k. Left to `verify`: that the files' bytes are those committed,
    and hold the rows that the commits tell of. Reads the commits, lists one folder, opens no data
    file (but to name doubled ids), and holds 8 bytes a row.
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
        # a damaged commit, or no file of one without hashes
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
    """Holes in a plan."""
    offset = 0
    for index, shard in enumerate(plan.shards):
        if (shard.index, shard.offset) != (index, offset):
            got = f"shard {shard.index} at {shard.offset}"
            yield f"plan: expected shard {index} at row {offset}, got {got}"
        offset += shard.rows
    if offset != plan.rows:
        yield f"plan: expected {plan.rows} rows over all shards, got {offset}"


def open_lines(stage: str, planned: Mapping[int, object], done: Iterable[int]) -> list[str]:
    """How many of the plan's shards have no commit, if any."""
    count = len(planned.keys() - set(done))
    return [f"{stage}: {count} of {len(planned)} shards have no commit"] if count else []


def commit_lines(commit: Commit, shard: Shard | None, given: int | None) -> Iterator[str]:
    """What is wrong in a commit; shard: the plan's; given: rows that it was to read."""
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
    """How many answers each row of a shard has, by the shard's index; {} where it has no rows, or
    not as many each.
    """
    if not commit.rows_out or not evenly(commit.rows, commit.rows_out):
        return {}
    return {commit.shard.index: commit.rows // commit.rows_out}


def each_lines(stage: str, each: Mapping[int, int]) -> Iterator[str]:
    """Shards whose rows have not as many answers as most shards' have."""
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
    """The doubled ones by name, from a second look at the rows (64 bits of hash only say where to
    look).

    tables: by shard; part: 0 for (id, k), 1 for cf_id.
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
    """A commit's hashes; of one that was written before commits held them, from its
    file's columns."""
    return unpack(commit.ids) if commit.ids is not None else hashes(keys(_names(store, commit))[0])


def _names(store: Store, commit: Commit) -> pa.Table:
    """The columns of a committed file that name its rows."""
    path = data_path(commit)
    with damage_named(store.url(path)), store.parquet(path) as file:
        return file.read(
            columns=[name for name in COLUMNS if name in file.schema_arrow.names], use_threads=False
        )


def _range(shard: Shard) -> str:
    return f"{shard.start}+{shard.rows} of {shard.file} ({shard.version})"
