"""A driver that ends at a stated point of its progress, and not at a time: what a child process of the tests runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class At(NamedTuple):
    """The nth call of a verb (a Store's, or `answer`: a batch) on a path that starts so, before or after it is done."""

    verb: str
    path: str = ""
    nth: int = 1
    when: str = "before"
    what: str = "kill"


def drive(argv: list[str], at: At | None, environ: dict[str, str], log: str) -> None:
    """Run the command line with a fault planted; all it says goes to the file `log`."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(environ)
    if at is not None:
        plant(at)
    from pipelines.cli import main

    code = main(argv)
    sys.stdout.flush()
    os._exit(code)


def plant(at: At) -> None:
    """Make the stated call end in the stated fault."""
    from actors.answer import Answerer
    from storage.uri import Store

    owner, name = (Answerer, "__call__") if at.verb == "answer" else (Store, at.verb)
    real: Callable[..., Any] = getattr(owner, name)
    seen = 0

    def call(self: Any, *args: Any) -> Any:
        nonlocal seen
        mine = at.verb == "answer" or args[0].startswith(at.path)
        seen += mine
        if mine and seen == at.nth and at.when == "before":
            act(at.what)
        done = real(self, *args)
        if mine and seen == at.nth and at.when == "after":
            act(at.what)
        return done

    setattr(owner, name, call)


def act(what: str) -> None:
    """The fault itself."""
    if what == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[what])


def wait_until_stopped(pid: int) -> None:
    """Wait for a child to be held by SIGSTOP; AssertionError if it ended instead."""
    while True:
        with open(f"/proc/{pid}/stat") as stat:
            state = stat.read().rpartition(")")[2].split()[0]
        if state == "T":
            return
        assert state not in "ZX", "it ended before it could be stopped"
        time.sleep(0.02)
