"""Starts of shards and of rows, noted before the work, so that what kills its worker is found by
what never ended.
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

# the session of a driver that works itself: what kills the worker kills the driver, too
LOCAL = "local"
SESSION = re.compile(r"[a-z0-9]{1,32}")
HUNG, RAISED = "hung", "raised"
NOTE_SECONDS = 5.0  # that a note may wait for its store: the process is to end, and is late already
DEADLY = 2  # deaths on a row before it is blamed: one may be a person's kill, or the machine's


@dataclass(frozen=True)
class Start:
    """A start of a shard: where it is noted, and how earlier ones ended.

    deaths: starts that their worker did not survive, and how many of those in this session; hung:
    one of them was stopped for taking too long.
    """

    path: str
    deaths: int
    here: int
    hung: bool


def begin(store: Store, stage: str, shard: Shard, session: str) -> Start:
    """Note that a worker of this driver's session starts a shard; see `look`."""
    start = next_start(store, stage, shard, session)
    enter(store, start)
    return start


def enter(store: Store, start: Start) -> None:
    """Note a start that was looked at before, and who makes it: machine and process."""
    store.write(start.path, f"{socket.gethostname()} {os.getpid()}".encode())


def next_start(store: Store, stage: str, shard: Shard, session: str) -> Start:
    """The next start of a shard, not noted yet, and how those before it ended.

    An earlier start that left neither an error nor a note died with its worker, or is the one that
    was going on when its driver ended (or still goes on elsewhere): of every other session one is
    forgiven, but of LOCAL none.
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
    """Note how a start ended where it left no commit: HUNG or RAISED."""
    with _kept_here(start.path if how == RAISED else None), at_most(NOTE_SECONDS):
        store.put_new(f"{start.path}-{how}", b"")


def deadly_rows(store: Store, stage: str, shard: Shard, session: str) -> dict[int, str]:
    """Rows that are not to be worked on again, with the reason: that hung, or were worked on alone
    when their worker died, DEADLY times.
    """
    names = _row_notes(store, stage, shard)
    deaths = _row_deaths(names, session)
    hung = [int(name.partition("-")[0]) for name in names if name.endswith(f"-{HUNG}")]
    return {
        **{row: "its worker died on this row" for row, n in deaths.items() if n >= DEADLY},
        **dict.fromkeys(hung, "it took longer than a row may take (engine.row_seconds)"),
    }


def count_row_deaths(store: Store, stage: str, shard: Shard, session: str) -> int:
    """How many deaths of a shard's workers were on a row that was worked on alone."""
    return _row_deaths(_row_notes(store, stage, shard), session).total()


def begin_row(store: Store, stage: str, shard: Shard, row: int, session: str) -> str:
    """Note that a row is worked on alone; returns the note, which `end_row` closes."""
    begun = f"poison/{_place(stage, shard)}/{row}-{session}-{uuid.uuid4().hex}"
    with _kept_here(begun):  # a note whose reply was lost may have arrived
        store.write(f"{begun}-begun", f"{socket.gethostname()} {os.getpid()}".encode())
    return begun


def end_row(store: Store, begun: str) -> None:
    """Note that the worker came back from a row."""
    with _kept_here(begun):
        store.put_new(f"{begun}-ended", b"")


def note_hung_row(store: Store, stage: str, shard: Shard, row: int) -> None:
    """Note that a row worked on alone took too long."""
    store.put_new(f"poison/{_place(stage, shard)}/{row}-{HUNG}", b"")


def _row_notes(store: Store, stage: str, shard: Shard) -> set[str]:
    return {path.rpartition("/")[2] for path in store.list(f"poison/{_place(stage, shard)}")}


def _row_deaths(names: set[str], session: str) -> Counter[int]:
    """How often each row was open when its worker ended.

    A row that was open when another driver's session ended may have ended with its driver: one such
    end is forgiven, but of LOCAL none.
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
    """Keep on this machine that a start or a row ended, where the note of it cannot be written: an
    outage and a stop are no deaths.
    """
    try:
        yield
    except BaseException:
        if path is not None:
            with suppress(OSError):
                local.write(str(_here() / path.rpartition("-")[2]), b"")
        raise


def _ends_here() -> set[str]:
    """The marks of starts and rows whose end could only be noted on this machine."""
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
