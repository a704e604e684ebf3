"""Starts of shards and of rows, noted before the work, so that what kills its worker is found by
what never ended.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections import Counter
from dataclasses import dataclass

from storage.commit import STAGE, shard_name
from storage.records import Shard
from storage.uri import Store

# the session of a driver that works itself: what kills the worker kills the driver, too
LOCAL = "local"
SESSION = re.compile(r"[a-z0-9]{1,32}")
HUNG, RAISED = "hung", "raised"


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
    raised = {parts[1] for parts in earlier if parts[2:] == [RAISED]}
    open_starts = Counter(
        parts[0] for parts in earlier if len(parts) == 2 and parts[1] not in raised
    )
    deaths = sum(
        count if name in (session, LOCAL) else count - 1 for name, count in open_starts.items()
    )
    return Start(path, deaths, open_starts[session], any(parts[2:] == [HUNG] for parts in earlier))


def note(store: Store, start: Start, how: str) -> None:
    """Note how a start ended where it left no commit: HUNG or RAISED."""
    store.put_new(f"{start.path}-{how}", b"")


def begin_row(store: Store, stage: str, shard: Shard, row: int, session: str) -> str | None:
    """Note that a row is worked on alone; else the reason not to: a worker took it up and never
    came back from it.

    A row that was open when another driver's session ended is tried again; an open one of this
    session was deadly.
    """
    mark = f"poison/{_place(stage, shard)}/{row}"
    if store.exists(f"{mark}-{HUNG}"):
        return "it took longer than a row may take (engine.row_seconds)"
    if not store.put_new(f"{mark}-{session}-begun", b"") and not store.exists(
        f"{mark}-{session}-ended"
    ):
        return "its worker died on this row"
    return None


def end_row(store: Store, stage: str, shard: Shard, row: int, session: str) -> None:
    """Note that the worker came back from a row."""
    store.put_new(f"poison/{_place(stage, shard)}/{row}-{session}-ended", b"")


def note_hung_row(store: Store, stage: str, shard: Shard, row: int) -> None:
    """Note that a row worked on alone took too long."""
    store.put_new(f"poison/{_place(stage, shard)}/{row}-{HUNG}", b"")


def deadly_rows(store: Store, stage: str, shard: Shard) -> int:
    """How many deaths a shard's rows account for: those begun alone and never ended, by session."""
    names = {path.rpartition("/")[2] for path in store.list(f"poison/{_place(stage, shard)}")}
    begun = (name.removesuffix("-begun") for name in names if name.endswith("-begun"))
    return sum(f"{name}-ended" not in names for name in begun)


def _place(stage: str, shard: Shard) -> str:
    if not STAGE.fullmatch(stage):
        raise ValueError(f"expected a stage name of a-z, 0-9 and -, got {stage!r}")
    return f"{stage}/{shard_name(shard.index, shard.revision)}"
