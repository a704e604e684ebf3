"""What a run's folder holds that nothing will ever read again."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from storage.commit import STAGE, all_revisions, commit_path, data_path, read_commit, shard_name
from storage.uri import Entry, Store

DATA = re.compile(r"data/[^/]+/(\d{6,})-[0-9a-z-]+\.parquet")
# of a write, of the look at a cluster's nodes
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp|\.probe-[0-9a-f]{32}")
ORPHAN, MARK, UNFINISHED, SUPERSEDED = (
    "data file that no commit names",
    "mark of a finished shard",
    "half-written file",
    "file of a superseded scoring",
)


class Garbage(NamedTuple):
    """A file that can go, and why."""

    path: str
    size: int
    why: str


def garbage(store: Store, *, older_than: float, scored: str | None) -> list[Garbage]:
    """Files of a run that can go, in the order in which to delete them; those younger than
    `older_than` seconds stay.

    scored: the stage of the scores that stand; other `score-` stages that nothing was written to
    lately are superseded. No file is given that a commit names, unless its whole stage is. Safe
    beside a driver that works: files are listed before the commits are, so a file that is committed
    meanwhile is seen to be; and a file that is to be committed later is younger than the grace
    period, which must be longer than a worker takes from data file to commit.
    """
    before = time.time() - older_than
    entries = store.entries()
    old = [entry for entry in entries if entry.written < before]
    found = [Garbage(entry.path, entry.size, UNFINISHED) for entry in old if _is_temporary(entry)]
    gone = _superseded(entries, before, scored)
    # some have nothing but data files left
    for stage in sorted({_stage_of(entry) for entry in old} - {""}):
        mine = [entry for entry in old if _stage_of(entry) == stage and not _is_temporary(entry)]
        if stage in gone:
            # Commits first: a half-done deletion leaves data files that nothing names, and no
            # commit of a missing file.
            mine.sort(key=lambda entry: not entry.path.startswith("commit/"))
            found += [Garbage(entry.path, entry.size, SUPERSEDED) for entry in mine]
            continue
        named = all_revisions(store, stage)
        found += [
            Garbage(entry.path, entry.size, ORPHAN) for entry in _orphans(store, stage, mine, named)
        ]
        found += [Garbage(entry.path, entry.size, MARK) for entry in _marks(mine, named)]
    return found


def _orphans(
    store: Store, stage: str, entries: Iterable[Entry], named: dict[int, list[int]]
) -> Iterator[Entry]:
    """Data files that none of their shard's commits names; a shard with a commit that cannot be
    read keeps all of its.

    Commits are read only of shards that have more files than commits: each commit names one file,
    and no other's.
    """
    files: dict[int, list[Entry]] = {}
    for entry in entries:
        if match := DATA.fullmatch(entry.path):
            files.setdefault(int(match[1]), []).append(entry)
    for index, mine in sorted(files.items()):
        numbers = named.get(index, [])
        if len(mine) <= len(numbers):
            continue
        try:
            kept = {
                data_path(read_commit(store, commit_path(stage, index, revision)))
                for revision in numbers
            }
        except (ValueError, FileNotFoundError):
            continue
        yield from (entry for entry in mine if entry.path not in kept)


def _marks(entries: Iterable[Entry], named: dict[int, list[int]]) -> Iterator[Entry]:
    """Marks of attempts and of rows of shards that are committed."""
    done = {shard_name(index, revision) for index, numbers in named.items() for revision in numbers}
    for entry in entries:
        parts = entry.path.split("/")
        if parts[0] in ("attempt", "poison") and len(parts) > 3 and parts[2] in done:
            yield entry


def _superseded(entries: Iterable[Entry], before: float, scored: str | None) -> set[str]:
    """Scorings that do not stand and of which no file is young."""
    if scored is None:
        return set()
    last: dict[str, float] = {}
    for entry in entries:
        stage = _stage_of(entry)
        last[stage] = max(last.get(stage, 0.0), entry.written)
    return {
        stage for stage, written in last.items() if stage.startswith("score-") and written < before
    } - {scored}


def _stage_of(entry: Entry) -> str:
    parts = entry.path.split("/")
    inside = (
        len(parts) > 2
        and parts[0] in ("commit", "data", "attempt", "poison")
        and STAGE.fullmatch(parts[1])
    )
    return parts[1] if inside else ""


def _name(entry: Entry) -> str:
    return entry.path.rpartition("/")[2]


def _is_temporary(entry: Entry) -> bool:
    return TEMPORARY.fullmatch(_name(entry)) is not None


def delete(store: Store, found: Iterable[Garbage]) -> None:
    """Delete what `garbage` gave, in its order."""
    for file in found:
        store.remove(file.path)


def counts(found: Iterable[Garbage]) -> dict[str, tuple[int, int]]:
    """Files and bytes by reason."""
    files: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for file in found:
        files[file.why] += 1
        size[file.why] += file.size
    return {why: (files[why], size[why]) for why in files}
