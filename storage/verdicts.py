"""People's verdicts on counterfactuals: a log in a run's folder, `review/`, that only grows.

Each writer has its own files, so that two writers at once do not overwrite each other. A file holds
up to FILE_RECORDS records and is replaced as a whole for each new one: a kill leaves the file with
the record or the file without it. Undoing is a further record. Files have a seal, as commits have.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from storage.errors import BadRecord
from storage.records import TEXT, TEXT_OR_NONE, checked
from storage.seal import has_seal, sealed, unsealed
from storage.uri import Store

FOLDER = "review"
FILE = re.compile(rf"{FOLDER}/([0-9a-f]{{16}})-(\d{{5,}})\.json")
FILE_RECORDS = 100
READERS = 8  # files read at a time: each costs a round trip in S3
VALID, SPURIOUS, UNREALISTIC = "valid", "spurious", "unrealistic"
VERDICTS = (VALID, SPURIOUS, UNREALISTIC)
STANDING = pa.schema(
    [
        pa.field("cf_id", pa.string(), nullable=False),
        pa.field("reviewer", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        ("note", pa.string()),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)


@dataclass(frozen=True)
class Verdict:
    """What a reviewer said of a counterfactual.

    verdict: one of VERDICTS; None takes the verdict back. at: UTC, ISO 8601 with microseconds, so
    that text sorts by time. key: a name that the sender chose, which makes sending again harmless.
    undo: whether it restores the state before the reviewer's last verdict.
    """

    cf_id: str
    reviewer: str
    verdict: str | None
    note: str | None = None
    at: str = ""
    key: str = ""
    undo: bool = False

    @classmethod
    def from_json(cls, value: Any, where: str) -> Verdict:
        """Return the record of a JSON value; BadRecord names what is wrong."""
        kinds = {
            **dict.fromkeys(("cf_id", "reviewer", "key"), TEXT),
            **dict.fromkeys(("verdict", "note"), TEXT_OR_NONE),
            "at": ("a time", _is_time),
            "undo": ("true or false", lambda value: isinstance(value, bool)),
        }
        found = cls(**checked(value, where, kinds))
        if found.verdict is not None and found.verdict not in VERDICTS:
            raise BadRecord(
                f"{where}: verdict: expected {', '.join(VERDICTS)} or null, got {found.verdict!r}"
            )
        return found


Files = dict[str, tuple[int, list[Verdict]]]  # bytes and records of each file, by path


class VerdictLog:
    """One writer's part of the log; not for use by several threads at once."""

    def __init__(self, store: Store) -> None:
        self.store, self.session = store, uuid.uuid4().hex[:16]
        self.number, self.records = 0, list[Verdict]()

    @property
    def path(self) -> str:
        """Return the path of the file that the next record goes to."""
        return f"{FOLDER}/{self.session}-{self.number:05d}.json"

    @property
    def added(self) -> int:
        """Return the number of its records."""
        return FILE_RECORDS * self.number + len(self.records)

    def add(self, verdict: Verdict) -> None:
        """Write a verdict; it is on the disk or in the bucket when this returns.

        Where writing fails, the error is raised and the log is without the verdict.
        """
        records = [*self.records, verdict]
        told = {"session": self.session, "file": self.number}
        data = sealed({**told, "verdicts": [asdict(one) for one in records]})
        self.store.replace(self.path, data)
        full = len(records) >= FILE_RECORDS
        self.number, self.records = (self.number + 1, []) if full else (self.number, records)


def now_after(last: str) -> str:
    """Return the time of a record: now, or a microsecond after `last` where a clock is behind."""
    now = datetime.now(UTC)
    if last:
        now = max(now, datetime.fromisoformat(last) + timedelta(microseconds=1))
    return now.isoformat(timespec="microseconds")


def read_files(store: Store, known: Mapping[str, tuple[int, list[Verdict]]]) -> Files:
    """Return the log's files; reads those whose size is not in `known`, since files only grow.

    BadRecord names a file that is damaged.
    """
    sizes = {path: size for path, size in store.sizes(FOLDER).items() if FILE.fullmatch(path)}
    fresh = [path for path, size in sizes.items() if known.get(path, (-1, []))[0] != size]
    with ThreadPoolExecutor(READERS) as pool:
        read = dict(zip(fresh, pool.map(lambda path: _read(store, path), fresh), strict=True))
    return {path: read.get(path) or known[path] for path in sizes}


def in_order(files: Mapping[str, tuple[int, list[Verdict]]]) -> list[Verdict]:
    """Return the records of files by time; records of one time by their file and place."""
    found = [one for path in sorted(files) for one in files[path][1]]
    return sorted(found, key=lambda one: one.at)


def standing(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return each reviewer's last verdict on each counterfactual, without those taken back.

    verdicts: by time.
    """
    last: dict[tuple[str, str], Verdict] = {}
    for one in verdicts:
        last[one.cf_id, one.reviewer] = one
    return [one for one in last.values() if one.verdict is not None]


def read_verdicts(store: Store) -> pa.Table:
    """Return the standing verdicts of a run as STANDING; no rows where nobody reviewed it.

    BadRecord names a file that is damaged.
    """
    found = [asdict(one) for one in standing(in_order(read_files(store, {})))]
    rows = [{**one, "at": datetime.fromisoformat(one["at"])} for one in found]
    return pa.Table.from_pylist(rows, schema=STANDING)


def verdict_lines(store: Store) -> Iterator[str]:
    """Yield a line for each file of the log that is damaged, missing or not full before another."""
    numbers: dict[str, dict[int, int]] = {}
    for path in store.list(FOLDER):
        if (match := FILE.fullmatch(path)) is None:
            continue
        count = FILE_RECORDS
        try:
            count = len(_read(store, path)[1])
        except (ValueError, FileNotFoundError) as error:
            yield " ".join(str(error).split())
        numbers.setdefault(match[1], {})[int(match[2])] = count
    for session, counts in numbers.items():
        for number in range(max(counts)):
            if counts.get(number) != FILE_RECORDS:
                got = counts.get(number, "none")
                path = f"{FOLDER}/{session}-{number:05d}.json"
                yield f"{path}: expected {FILE_RECORDS} verdicts before a further file, got {got}"


def _read(store: Store, path: str) -> tuple[int, list[Verdict]]:
    data, where = store.read(path), store.url(path)
    if not has_seal(data):
        raise BadRecord(f"{where}: expected its seal, got none")
    kinds = {"verdicts": ("a list", lambda value: isinstance(value, list)), "session": TEXT}
    found = checked(unsealed(data, where), where, kinds)
    if found["session"] != path.partition("/")[2].partition("-")[0]:
        raise BadRecord(f"{where}: expected the verdicts of this file's session, got another's")
    return len(data), [Verdict.from_json(one, where) for one in found["verdicts"]]


def _is_time(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False
