"""A time limit on work that cannot be interrupted: what takes too long ends its process, and says
where it was.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# exit code of a process that was stopped so (EX_TEMPFAIL: the same command goes on from there)
STOPPED = 75
# seconds in which the note must be written; also for work that lets no Python thread run
GRACE = 10.0


@contextmanager
def limit(seconds: float | None, what: str, note: Callable[[], None]) -> Iterator[None]:
    """Run a block that may take so many seconds; one that takes longer is noted, and its process
    ends with STOPPED.

    A thread can neither be stopped nor, while torch or a server holds it, be asked to stop: so the
    process goes. `note` runs in another thread. Where the block holds the interpreter's lock, no
    thread can run either: then faulthandler's own, which needs none, ends the process after GRACE
    seconds more, without a note: that start counts as a death. One block at a time in a process;
    None is no limit.
    """
    if seconds is None:
        yield
        return

    timer = threading.Timer(
        seconds, lambda: stop(f"{what} took more than {seconds:g} s: stopped", note)
    )
    timer.daemon = True
    timer.start()
    backstop = _backstop(seconds + GRACE)
    try:
        yield
    finally:
        timer.cancel()
        if backstop:
            faulthandler.cancel_dump_traceback_later()


def stop(why: str, note: Callable[[], None] = lambda: None) -> NoReturn:
    """End this process with STOPPED, whatever its other threads do; it says why, and leaves the
    note if it can.
    """
    with suppress(Exception):
        print(f"counterfactory: {why}", file=sys.stderr, flush=True)
        note()
    os._exit(STOPPED)


def _backstop(seconds: float) -> bool:
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    except (RuntimeError, ValueError, OSError):  # no standard error to write to: the thread must do
        return False
    return True
