"""Notes of each start of a shard or row, written before the work begins.

A start whose end was never noted shows which shard or row killed its worker.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storage import local
from storage.cache import home
from storage.commit import STAGE, shard_name
from storage.records import Shard
from storage.s3_retry import at_most
from storage.uri import Store

# the session of a driver that works itself: its worker's death is also its own
LOCAL = "local"
SESSION = re.compile(r"[a-z0-9]{1,32}")
HUNG, RAISED = "hung", "raised"
NOTE_SECONDS = 5.0  # limit on writing a note: the process is ending, and late
DEADLY = 2  # deaths on a row before it is blamed: one may be from a manual kill or the machine


@dataclass(frozen=True)
class Start:
    """A start of a shard: the path of its note, and how earlier starts ended.

    deaths: earlier starts whose worker died; here: how many of those in this session; hung: whether
    one of them was stopped for taking too long.
    """

    path: str
    deaths: int
    here: int
    hung: bool


def begin(store: Store, stage: str, shard: Shard, session: str) -> Start:
    """Write the note that a worker of this driver's session starts a shard; see `next_start`."""
    start = next_start(store, stage, shard, session)
    enter(store, start)
    return start


def enter(store: Store, start: Start) -> None:
    """Write the note of a start from `next_start`, with the machine and process that makes it."""
    store.write(start.path, f"{socket.gethostname()} {os.getpid()}".encode())


def next_start(store: Store, stage: str, shard: Shard, session: str) -> Start:
    """Return the next start of a shard, not noted yet, and how the earlier ones ended.

    An earlier start without an error and without a note has two possible causes: its worker died,
    or its driver ended during it (or still runs elsewhere). One such start is therefore not counted
    for each other session, except LOCAL.
    """
    if not SESSION.fullmatch(session):
        raise ValueError(f"expected a session of a-z and 0-9, got {session!r}")
    folder = f"attempt/{_place(stage, shard)}"
    earlier = [path.rpartition("/")[2].split("-") for path in store.list(folder)]
    path = f"{folder}/{session}-{uuid.uuid4().hex}"
    raised = {parts[1] for parts in earlier if parts[2:] == [RAISED]} | _ends_here()
    open_starts = Counter(
        parts[0] for parts in earlier if len(parts) == 2 and parts[1] not in raised
    )
    deaths = sum(
        count if name in (session, LOCAL) else count - 1 for name, count in open_starts.items()
    )
    return Start(path, deaths, open_starts[session], any(parts[2:] == [HUNG] for parts in earlier))


def note(store: Store, start: Start, how: str) -> None:
    """Write the note how a start ended without a commit: HUNG or RAISED."""
    with _kept_here(start.path if how == RAISED else None), at_most(NOTE_SECONDS):
        store.put_new(f"{start.path}-{how}", b"")


def deadly_rows(store: Store, stage: str, shard: Shard, session: str) -> dict[int, str]:
    """Return the rows that must not be tried again, with the reason.

    These are the rows that hung, and the rows that were worked on alone in DEADLY deaths of a
    worker.
    """
    names = _row_notes(store, stage, shard)
    deaths = _row_deaths(names, session)
    hung = [int(name.partition("-")[0]) for name in names if name.endswith(f"-{HUNG}")]
    return {
        **{row: "its worker died on this row" for row, n in deaths.items() if n >= DEADLY},
        **dict.fromkeys(hung, "it took longer than a row may take (engine.row_seconds)"),
    }


def count_row_deaths(store: Store, stage: str, shard: Shard, session: str) -> int:
    """Count the deaths of a shard's workers during a row that was worked on alone."""
    return _row_deaths(_row_notes(store, stage, shard), session).total()


def begin_row(store: Store, stage: str, shard: Shard, row: int, session: str) -> str:
    """Write the note that a row is worked on alone; returns the note, which `end_row` closes."""
    begun = f"poison/{_place(stage, shard)}/{row}-{session}-{uuid.uuid4().hex}"
    with _kept_here(begun):  # the note may have been written although its reply was lost
        store.write(f"{begun}-begun", f"{socket.gethostname()} {os.getpid()}".encode())
    return begun


def end_row(store: Store, begun: str) -> None:
    """Write the note that the worker finished a row."""
    with _kept_here(begun):
        store.put_new(f"{begun}-ended", b"")


def note_hung_row(store: Store, stage: str, shard: Shard, row: int) -> None:
    """Write the note that a row worked on alone took too long."""
    store.put_new(f"poison/{_place(stage, shard)}/{row}-{HUNG}", b"")


def _row_notes(store: Store, stage: str, shard: Shard) -> set[str]:
    return {path.rpartition("/")[2] for path in store.list(f"poison/{_place(stage, shard)}")}


def _row_deaths(names: set[str], session: str) -> Counter[int]:
    """Count, for each row, how often it was open when its worker ended.

    A row that was open when another driver's session ended may have ended with its driver. One such
    end is therefore not counted for each other session, except LOCAL.
    """
    opened: Counter[tuple[int, str]] = Counter()
    here = _ends_here()
    for name in names:
        if name.endswith("-begun") and f"{name.removesuffix('-begun')}-ended" not in names:
            row, owner, *mark = name.removesuffix("-begun").split("-")
            if here.isdisjoint(mark):
                opened[int(row), owner] += 1
    found: Counter[int] = Counter()
    for (number, owner), count in opened.items():
        found[number] += count if owner in (session, LOCAL) else count - 1
    return found


@contextmanager
def _kept_here(path: str | None) -> Iterator[None]:
    """Store the end of a start or row on this machine where its note cannot be written to the
    store.

    An outage and a stop then do not count as deaths.
    """
    try:
        yield
    except BaseException:
        if path is not None:
            with suppress(OSError):
                local.write(str(_here() / path.rpartition("-")[2]), b"")
        raise


def _ends_here() -> set[str]:
    """Return the marks of starts and rows whose end was noted on this machine only."""
    try:
        return set(os.listdir(_here()))
    except OSError:
        return set()


def _here() -> Path:
    return home() / "ended"


def _place(stage: str, shard: Shard) -> str:
    if not STAGE.fullmatch(stage):
        raise ValueError(f"expected a stage name of a-z, 0-9 and -, got {stage!r}")
    return f"{stage}/{shard_name(shard.index, shard.revision)}"
