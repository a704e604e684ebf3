"""List, or delete, the files that a run no longer needs."""

from __future__ import annotations

import re
from contextlib import suppress

from configs.strict import UserError
from pipelines.engine.committed import (
    JUDGED,
    attributed_stage,
    intervened_stage,
    load_plan,
    scored_stage,
)
from storage.gc import counts, delete, garbage
from storage.seal import read_sealed
from storage.uri import Store

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
YOUNGEST = 3600  # least age in seconds of a file to delete: a driver may still commit a younger one
NAMED = 5  # files listed per reason


def gc(store: Store, *, older_than: str = "24h", do: bool = False) -> str:
    """Return a text that lists the files that can be deleted, by reason; with `do`, delete them.

    UserError where the folder is no run, or where the age is too low.
    """
    load_plan(store)
    seconds = age(older_than)
    if do and seconds < YOUNGEST:
        raise UserError(
            f"--older-than: expected 1h or more with --delete, got {older_than!r}: a younger file"
            " may be one that a running driver is about to commit"
        )
    found = garbage(store, older_than=seconds, current=_current(store))
    if not found:
        return f"{store.uri}: nothing to delete that is older than {older_than}"
    if do:
        delete(store, found)
    lines = []
    for why, (files, size) in counts(found).items():
        lines.append(f"{files:8,d} x {why}, {size / 1e6:,.1f} MB")
        lines += [
            f"             {file.path}" for file in [f for f in found if f.why == why][:NAMED]
        ]
        lines += [f"             and {files - NAMED:,d} more"] if files > NAMED else []
    done = "deleted" if do else f"older than {older_than}; nothing was deleted: --delete does it"
    return "\n".join([*lines, f"{store.uri}: {len(found):,d} files, {done}"])


def age(text: str) -> float:
    """Return an age such as 90s, 30m, 24h or 7d in seconds; UserError for another text."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise UserError(f"--older-than: expected an age like 30m, 24h or 7d, got {text!r}")
    return float(int(match[1]) * UNITS[match[2]])


def _current(store: Store) -> list[str]:
    """Return the stages of the tables that the run has."""
    found = []
    for stage_of in (scored_stage, intervened_stage, attributed_stage):
        with suppress(UserError, ValueError):
            found.append(stage_of(store))
    with suppress(FileNotFoundError, ValueError, KeyError):
        found += read_sealed(store, JUDGED)["stages"]
    return found
