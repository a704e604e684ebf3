"""The record of finished work: a data file and a commit object per shard and stage.

Readers trust only the first commit that was written. A shard whose quarantined rows are tried again
gets a further commit, called a revision: `commit/generate/000012.r1.json` holds the whole shard and
replaces `000012.json`, which stays. A later stage's commit has the revision that it was made from,
and counts only while generate has no higher one.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa

from storage.errors import BadCommit, BadData, BadRecord
from storage.names import hashes, keys, pack
from storage.records import Commit, Plan, Shard
from storage.run import versions
from storage.seal import sealed, unsealed
from storage.tables import footer_digest, is_damage, open_parquet, to_parquet
from storage.uri import Store

STAGE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
COMMIT = re.compile(r"(\d{6,})(?:\.r([1-9]\d*))?\.json")
# the stage whose input is the plan; the input of every other stage is what it committed
GENERATE = "generate"
# bytes up to which a data file is read whole, for any columns: fewer round trips in S3
WHOLE = 8 << 20
READERS = 8  # commit objects fetched at a time: they are small, and each costs a round trip in S3


def commit_shard(
    store: Store,
    stage: str,
    shard: Shard,
    table: pa.Table,
    *,
    rows_in: int,
    quarantined: list[dict[str, Any]],
    seconds: float,
    extra: dict[str, Any],
    rows_out: int | None = None,
) -> Commit:
    """Write a shard's table, then its commit; returns the first commit, perhaps another writer's.

    quarantined: [{"id", "reason"}]. rows_out: input rows answered; by default the table's rows. A
    method with k answers to a row makes k times as many rows in generate. Deletes nothing: after a
    lost reply, a file that looks orphaned may be the committed one. ValueError, with nothing
    written, where rows_in is not rows_out + quarantined, or the answers cannot be divided evenly
    among the rows.
    """
    revision = shard.revision
    path, name = commit_path(stage, shard.index, revision), shard_name(shard.index, revision)
    rows_out = table.num_rows if rows_out is None else rows_out
    _expect_whole(stage, shard, rows_in, rows_out, quarantined)
    if not evenly(table.num_rows, rows_out):
        raise ValueError(
            f"expected as many answers to each of {rows_out} rows, got {table.num_rows} answers"
        )
    data = to_parquet(table)
    digest, attempt = hashlib.sha256(data).hexdigest(), uuid.uuid4().hex[:12]
    file = f"data/{stage}/{name.replace('.', '-')}-{digest[:12]}-{attempt}.parquet"
    commit = Commit(
        stage=stage,
        shard=replace(shard, revision=0, tries=None),
        revision=revision,
        file=file,
        sha256=digest,
        bytes=len(data),
        rows=table.num_rows,
        ids=pack(hashes(keys(table)[0])),
        footer=footer_digest(data),
        rows_in=rows_in,
        rows_out=rows_out,
        quarantined=quarantined,
        seconds=seconds,
        attempt=attempt,
        versions=versions(),
        extra=extra,
    )
    text = sealed(commit.to_json())
    store.write(file, data)
    return commit if store.put_new(path, text) else read_commit(store, path)


def read_commits(store: Store, stage: str) -> dict[int, Commit]:
    """Return all commits of a stage by shard index; BadCommit names an object that is no commit."""
    return {commit.shard.index: commit for commit in iterate_commits(store, stage)}


def iterate_commits(store: Store, stage: str) -> Iterator[Commit]:
    """Yield the current commits of a stage in the order of shards, a few in memory at a time."""
    paths = [
        commit_path(stage, index, revision) for index, revision in revisions(store, stage).items()
    ]
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(paths), 32 * READERS):
            yield from pool.map(
                lambda path: read_commit(store, path), paths[start : start + 32 * READERS]
            )


def read_committed(store: Store, commit: Commit, columns: list[str] | None = None) -> pa.Table:
    """Read the table that a commit names, or some of its columns.

    BadData, which names the file, where it is not the committed one. A file that is read whole (all
    columns, or a small file) is checked against the committed sha256. Of a large file, the footer
    is checked against its digest, and every page that is read against its checksum.
    """
    path = data_path(commit)
    try:
        if columns is None or commit.bytes <= WHOLE:
            with open_parquet(pa.BufferReader(committed_bytes(store, commit))) as file:
                table = file.read(columns=columns, use_threads=False)
        else:
            with store.parquet(path, footer=commit.footer) as file:
                table = file.read(columns=columns, use_threads=False)
        if file.metadata.num_rows == commit.rows:
            return table
        told = f"{path}: expected {commit.rows} rows, got {file.metadata.num_rows}"
    except (FileNotFoundError, BadData) as error:
        told = str(error)
    except (ValueError, OSError, pa.ArrowException) as error:
        if not is_damage(error) and type(error) is not ValueError:
            raise
        told = f"{path}: expected the data that were committed, got {' '.join(str(error).split())}"
    raise BadData(
        f"{store.uri}: {told}: put it back, or move"
        f" {commit_path(commit.stage, commit.shard.index, commit.revision)} away, then the same"
        " command does the shard again"
    )


def committed_bytes(store: Store, commit: Commit) -> bytes:
    """Read the data file that a commit names; BadData where its bytes are not the
    committed ones.
    """
    path = data_path(commit)
    data = store.read(path)
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (commit.bytes, commit.sha256):
        raise BadData(
            f"{path}: expected {commit.bytes} bytes with sha256 {commit.sha256}, got {len(data)}"
            f" with {digest}"
        )
    return data


def committed(store: Store, stage: str) -> list[int]:
    """Return the indices of shards with a current commit, in order, from file names alone."""
    return list(revisions(store, stage))


def revisions(store: Store, stage: str) -> dict[int, int]:
    """Return the current revision of each shard by index, in order, from file names alone.

    For `generate` this is the highest revision; for a later stage the one made from generate's
    highest revision, where there is one.
    """
    found = all_revisions(store, stage)
    if stage == GENERATE:
        return {index: max(numbers) for index, numbers in found.items()}
    now = revisions(store, GENERATE)
    wanted = {index: now.get(index, max(numbers)) for index, numbers in found.items()}
    return {index: revision for index, revision in wanted.items() if revision in found[index]}


def all_revisions(store: Store, stage: str) -> dict[int, list[int]]:
    """Return every revision of a stage's shards by index, both in order, from file names alone."""
    folder = f"commit/{_stage(stage)}"
    matches = (COMMIT.fullmatch(path.removeprefix(f"{folder}/")) for path in store.list(folder))
    found: dict[int, list[int]] = {}
    for index, revision in sorted(
        (int(match[1]), int(match[2] or 0)) for match in matches if match
    ):
        found.setdefault(index, []).append(revision)
    return found


def stages(store: Store) -> list[str]:
    """Return the stages with a commit or a noted start, `generate` first."""
    names = {
        name
        for top in ("commit", "attempt")
        for name in store.folders(top)
        if STAGE.fullmatch(name)
    }
    return sorted(names, key=lambda name: (name != GENERATE, name))


def todo(plan: Plan, store: Store, stage: str) -> list[Shard]:
    """Return the plan's shards that have no commit.

    For a later stage they have the revision that generate has, unless it is 0.
    """
    done = set(committed(store, stage))
    now = {} if stage == GENERATE else revisions(store, GENERATE)
    left = (shard for shard in plan.shards if shard.index not in done)
    return [
        replace(shard, revision=now[shard.index]) if now.get(shard.index) else shard
        for shard in left
    ]


def to_retry(plan: Plan, store: Store) -> list[Shard]:
    """Return the plan's shards with quarantined rows, as their next revision.

    `tries` is the number of those rows.
    """
    bad = {
        commit.shard.index: (commit.revision + 1, len(commit.quarantined))
        for commit in iterate_commits(store, GENERATE)
        if commit.quarantined
    }
    return [
        replace(shard, revision=bad[shard.index][0], tries=bad[shard.index][1])
        for shard in plan.shards
        if shard.index in bad
    ]


def totals(
    commits: Mapping[int, Commit] | Iterable[Commit],
) -> dict[str, Any]:
    """Return sums over commits: shards, rows_in, rows_out, rows, quarantined, bytes, seconds.

    Also sums every number in `extra`.
    """
    sums: dict[str, Any] = dict.fromkeys(
        ("shards", "rows_in", "rows_out", "rows", "quarantined", "bytes", "seconds"), 0
    )
    for commit in commits.values() if isinstance(commits, Mapping) else commits:
        sums["shards"] += 1
        sums["quarantined"] += len(commit.quarantined)
        for name in ("rows_in", "rows_out", "rows", "bytes", "seconds"):
            sums[name] += getattr(commit, name)
        for name, value in commit.extra.items():
            if isinstance(value, int | float):
                sums[name] = sums.get(name, 0) + value
    return sums


def evenly(answers: int, rows: int) -> bool:
    """Return whether every row can have the same number of answers, one or more."""
    return answers % rows == 0 < answers if rows else answers == 0


def commit_path(stage: str, index: int, revision: int = 0) -> str:
    """Return the path of a shard's commit."""
    return f"commit/{_stage(stage)}/{shard_name(index, revision)}.json"


def shard_name(index: int, revision: int = 0) -> str:
    """Return the name of the files of a shard's revision: 000012, 000012.r1."""
    return f"{_index(index):06d}" + (f".r{_index(revision)}" if revision else "")


def data_path(commit: Commit) -> str:
    """Return the path of a commit's data file; ValueError where it is not a data
    file of its stage.
    """
    file = commit.file
    if not re.fullmatch(rf"data/{_stage(commit.stage)}/[0-9a-z-]+\.parquet", file):
        raise ValueError(f"expected a data file of stage {commit.stage}, got {file!r}")
    return file


def read_commit(store: Store, path: str) -> Commit:
    """Read one commit object; BadCommit where the file is no commit, or another shard's."""
    return parse_commit(store, path, store.read(path))


def parse_commit(store: Store, path: str, data: bytes) -> Commit:
    """Return the commit object of a file's bytes, as `read_commit`."""
    try:
        commit = Commit.from_json(unsealed(data, "commit"))
        data_path(commit)
        told = "of another shard"
        if commit_path(commit.stage, commit.shard.index, commit.revision) == path:
            return commit
    except BadRecord as error:
        told = f"of something else ({error})"
    except ValueError:
        told = "of something else"
    raise BadCommit(
        f"{store.url(path)}: expected the commit of this shard, got {len(data)} bytes {told}:"
        " put it back, or move it away, then the same command does the shard again"
    )


def _expect_whole(
    stage: str, shard: Shard, rows_in: int, rows_out: int, bad: list[dict[str, Any]]
) -> None:
    if rows_in != rows_out + len(bad):
        raise ValueError(
            f"expected rows_in = rows_out + quarantined, got {rows_in} = {rows_out} + {len(bad)}"
        )
    if stage == GENERATE and rows_in != shard.rows:
        raise ValueError(f"expected all {shard.rows} rows of shard {shard.index}, got {rows_in}")
    if not all(
        isinstance(row.get("id"), str) and isinstance(row.get("reason"), str) for row in bad
    ):
        raise ValueError(
            "expected quarantined rows as {'id': str, 'reason': str}, got another shape"
        )


def _stage(name: str) -> str:
    if not isinstance(name, str) or not STAGE.fullmatch(name):
        raise ValueError(f"expected a stage name of a-z, 0-9 and -, got {name!r}")
    return name


def _index(index: int) -> int:
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ValueError(f"expected a shard index >= 0, got {index!r}")
    return index
