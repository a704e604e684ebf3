"""A time limit on work that cannot be interrupted.

Work that takes too long ends its process, with a message on where it was.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# exit code of a process stopped in this way (EX_TEMPFAIL: the same command continues from there)
STOPPED = 75
# seconds allowed for the note, and for work that lets no Python thread run
GRACE = 10.0


@contextmanager
def limit(seconds: float | None, what: str, note: Callable[[], None]) -> Iterator[None]:
    """Run a block with a time limit; where it takes longer, it is noted and its process ends with
    STOPPED.

    A thread cannot be stopped, nor asked to stop while torch or a server holds it, so the process
    ends. `note` runs in another thread. Where the block holds the interpreter's lock, no thread can
    run. Then faulthandler's own thread, which does not need the lock, ends the process after GRACE
    seconds more, without a note, and that start counts as a death. Only one block at a time in a
    process. seconds: None for no limit.
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
    """End this process with STOPPED, without waiting for its other threads.

    Prints the reason, and writes the note if it can.
    """
    with suppress(Exception):
        print(f"counterfactory: {why}", file=sys.stderr, flush=True)
        note()
    os._exit(STOPPED)


def _backstop(seconds: float) -> bool:
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    except (RuntimeError, ValueError, OSError):  # no standard error: the thread must end it
        return False
    return True
