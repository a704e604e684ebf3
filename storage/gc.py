"""Search for files in a run's folder that nothing will read again, and their deletion."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from storage.commit import STAGE, all_revisions, commit_path, data_path, read_commit, shard_name
from storage.uri import Entry, Store

DATA = re.compile(r"data/[^/]+/(\d{6,})-[0-9a-z-]+\.parquet")
# of a write, or of the check of a cluster's nodes
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp|\.probe-[0-9a-f]{32}")
ORPHAN, MARK, UNFINISHED, SUPERSEDED = (
    "data file that no commit names",
    "mark of a finished shard",
    "half-written file",
    "file of a superseded scoring",
)


class Garbage(NamedTuple):
    """A file that can be deleted, and the reason."""

    path: str
    size: int
    why: str


def garbage(store: Store, *, older_than: float, current: Collection[str]) -> list[Garbage]:
    """Return the files of a run that can be deleted, in the order in which to delete them.

    Files younger than `older_than` seconds stay. current: the stages of the current
    tables, such as score-1f; other stages of the same kind (`score-`) without a recent write are
    superseded. A file that a commit names is returned
    only where its whole stage is superseded.

    This is safe while a driver works. Files are listed before the commits, so a file that is
    committed in between is recognised as committed. A file that is committed later is younger than
    the grace period, which must be longer than a worker's time from data file to commit.
    """
    before = time.time() - older_than
    entries = store.entries()
    old = [entry for entry in entries if entry.written < before]
    found = [Garbage(entry.path, entry.size, UNFINISHED) for entry in old if _is_temporary(entry)]
    gone = _superseded(entries, before, current)
    # some stages have only data files left
    for stage in sorted({_stage_of(entry) for entry in old} - {""}):
        mine = [entry for entry in old if _stage_of(entry) == stage and not _is_temporary(entry)]
        if stage in gone:
            # Commits first: a deletion that stops halfway leaves data files without a commit,
            # but no commit without its file.
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
    """Yield data files that none of their shard's commits names.

    Keeps all files of a shard where one of its commits cannot be read. Reads commits only of shards
    that have more files than commits, because each commit names one file that no other commit
    names.
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
    """Yield the marks of attempts and of rows whose shard is committed."""
    done = {shard_name(index, revision) for index, numbers in named.items() for revision in numbers}
    for entry in entries:
        parts = entry.path.split("/")
        if parts[0] in ("attempt", "poison") and len(parts) > 3 and parts[2] in done:
            yield entry


def _superseded(entries: Iterable[Entry], before: float, current: Collection[str]) -> set[str]:
    """Return the stages that are not current, of the kinds of those that are, without a young
    file.
    """
    kinds = {stage.partition("-")[0] for stage in current}
    last: dict[str, float] = {}
    for entry in entries:
        stage = _stage_of(entry)
        last[stage] = max(last.get(stage, 0.0), entry.written)
    return {
        stage
        for stage, written in last.items()
        if stage.partition("-")[0] in kinds and written < before
    } - set(current)


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
    """Delete the files that `garbage` returned, in its order."""
    for file in found:
        store.remove(file.path)


def counts(found: Iterable[Garbage]) -> dict[str, tuple[int, int]]:
    """Return files and bytes by reason."""
    files: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for file in found:
        files[file.why] += 1
        size[file.why] += file.size
    return {why: (files[why], size[why]) for why in files}
