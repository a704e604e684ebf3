"""The invariants of a run, checked from what is stored and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet as pq

from storage.commit import GENERATE, commit_path, committed, data_path, read_commit, stages
from storage.run import read_plan
from storage.uri import Store

Hashes = NDArray[np.uint64]
DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    FileNotFoundError,
)  # other OSErrors say nothing about the run: they are raised
NAMED = 10  # doubled ids named per stage; the rest is counted


def verify(store: Store) -> list[str]:
    """Each broken invariant as a line; [] if all hold.

    Of every stage: each shard of the plan has a commit and no other has; rows_in = rows_out + quarantined; rows_in is
    what the plan gave, or after `generate` what generate committed; the data file has the committed sha256, size and
    rows; no cf_id twice, no id twice with the same k. Holds one shard and 16 bytes a row in memory.
    """
    plan = read_plan(store)
    lines = list(_plan_lines(plan))
    given = {shard["index"]: shard["rows"] for shard in plan["shards"]}
    for stage in dict.fromkeys([GENERATE, *stages(store)]):
        found, rows = _stage_lines(store, plan, stage, given)
        lines += found
        given = rows if stage == GENERATE else given
    return lines


def _plan_lines(plan: dict[str, Any]) -> Iterator[str]:
    offset = 0
    for index, shard in enumerate(plan["shards"]):
        if (shard["index"], shard["offset"]) != (index, offset):
            got = f"shard {shard['index']} at {shard['offset']}"
            yield f"plan: expected shard {index} at row {offset}, got {got}"
        offset += shard["rows"]
    if offset != plan["rows"]:
        yield f"plan: expected {plan['rows']} rows over all shards, got {offset}"


def _stage_lines(
    store: Store, plan: dict[str, Any], stage: str, given: dict[int, int]
) -> tuple[list[str], dict[int, int]]:
    """Broken invariants of a stage, and the rows of each of its shards; given: rows that each shard was to read."""
    planned = {shard["index"]: shard for shard in plan["shards"]}
    done = committed(store, stage)
    lines = []
    if open_shards := len(planned.keys() - set(done)):
        lines.append(f"{stage}: {open_shards} of {len(planned)} shards have no commit")
    rows: dict[int, int] = {}
    ids: list[Hashes] = []
    answers: list[Hashes] = []
    for index in done:
        where = f"{stage}: shard {index}"
        try:
            commit = read_commit(store, commit_path(stage, index))
            lines += [f"{where}: {line}" for line in _commit_lines(commit, planned.get(index), given.get(index))]
            rows[index] = commit["rows"]
            table = _table(store, commit)
        except DAMAGE as error:
            lines.append(f"{where}: {' '.join(str(error).split()) or type(error).__name__}")
            continue
        lines += [f"{where}: {line}" for line in _table_lines(commit, table, stage)]
        keys, names = _keys(table)
        ids.append(_hashes(keys))
        answers.append(_hashes(names))
    for what, hashes, part in (("id and k", ids, 0), ("cf_id", answers, 1)):
        if doubled := _doubled(hashes):
            lines += [f"{stage}: {line}" for line in _name_doubled(store, stage, done, doubled, what, part)]
    return lines, rows


def _commit_lines(commit: dict[str, Any], shard: dict[str, Any] | None, given: int | None) -> Iterator[str]:
    bad = len(commit["quarantined"])
    if shard is None:
        yield "expected a shard of the plan, got a commit of another"
    elif commit["shard"] != shard:
        yield f"expected the commit of rows {_range(shard)}, got one of {_range(commit['shard'])}"
    if commit["rows_in"] != commit["rows_out"] + bad:
        yield f"expected rows_in = rows_out + quarantined, got {commit['rows_in']} = {commit['rows_out']} + {bad}"
    if shard is not None and given is None:
        yield f"expected a commit of {GENERATE} before this one, got none"
    elif shard is not None and commit["rows_in"] != given:
        yield f"expected {given} rows in, got {commit['rows_in']}"


def _table_lines(commit: dict[str, Any], table: pa.Table, stage: str) -> Iterator[str]:
    if table.num_rows != commit["rows"]:
        yield f"expected {commit['rows']} rows in its file, got {table.num_rows}"
    ids = set(table["id"].to_pylist()) if "id" in table.column_names else set()
    answered = len(ids) if stage == GENERATE and ids else table.num_rows
    if answered != commit["rows_out"]:
        yield f"expected {commit['rows_out']} rows answered in its file, got {answered}"


def _table(store: Store, commit: dict[str, Any]) -> pa.Table:
    """The naming columns of a committed file, once its bytes are the ones committed."""
    path = data_path(commit)
    data = store.read(path)
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (commit["bytes"], commit["sha256"]):
        told = f"expected {commit['bytes']} bytes with sha256 {commit['sha256']}, got {len(data)} with {digest}"
        raise ValueError(f"{path}: {told}")
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        columns = [name for name in ("id", "cf_id", "k") if name in file.schema_arrow.names]
        return file.read(columns=columns, use_threads=False) if columns else file.read(use_threads=False)


def _keys(table: pa.Table) -> tuple[list[str], list[str]]:
    """What must be unique over a stage: (id, k), and cf_id; [] where the table has no such columns.

    Ids of quarantined rows are not among them: a row is quarantined for bearing another's id, too.
    """
    rows = table.to_pydict()
    nth = rows.get("k") or [0] * table.num_rows
    keys = [json.dumps(key) for key in zip(rows.get("id", []), nth, strict=False)]
    return keys, [str(name) for name in rows.get("cf_id", [])]


def _hashes(keys: list[str]) -> Hashes:
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _doubled(parts: list[Hashes]) -> set[int]:
    if not parts:
        return set()
    values = np.sort(np.concatenate(parts))
    return {int(value) for value in np.unique(values[1:][values[1:] == values[:-1]])}


def _name_doubled(store: Store, stage: str, done: list[int], doubled: set[int], what: str, part: int) -> list[str]:
    """The doubled ones by name, from a second look at the files (64 bits of hash only say where to look)."""
    where: dict[str, Counter[int]] = {}
    for index in done:
        try:
            commit = read_commit(store, commit_path(stage, index))
            keys = _keys(_table(store, commit))[part]
        except DAMAGE:
            continue  # named already
        for key, value in zip(keys, _hashes(keys), strict=True):
            if int(value) in doubled:
                where.setdefault(key, Counter())[index] += 1
    twice = {key: shards for key, shards in where.items() if shards.total() > 1}
    lines = [
        f"expected each {what} once, got {key} {shards.total()} times, in shards {sorted(shards)}"
        for key, shards in sorted(twice.items())
    ]
    return lines[:NAMED] + ([f"and {len(lines) - NAMED} more doubled"] if len(lines) > NAMED else [])


def _range(shard: dict[str, Any]) -> str:
    return f"{shard.get('start')}+{shard.get('rows')} of {shard.get('file')} ({shard.get('version')})"
