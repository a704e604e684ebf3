"""A driver that ends at a stated point of its progress, and not at a time: what a child process of
the tests runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

NEWNS, NEWUSER = 0x20000, 0x10000000  # of unshare(2)
READ_ONLY, REMOUNT, REC, PRIVATE = 1, 32, 0x4000, 1 << 18  # of mount(2)
REFUSED = 77
SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "term": signal.SIGTERM,
    "hup": signal.SIGHUP,
    "int": signal.SIGINT,
}


class At(NamedTuple):
    """The nth call of a verb (a Store's, or `answer`: a batch) on a path that starts so, before or
    after it is done.
    """

    verb: str
    path: str = ""
    nth: int = 1
    when: str = "before"
    what: str = "kill"


def drive(argv: list[str], at: At | None, environ: dict[str, str], log: str) -> None:
    """Run the command line with a fault planted; all it says goes to the file `log`."""
    speak_to(log)
    os.environ.update(environ)
    # a shell in the background, or nohup, makes the tests ignore Ctrl-C or SIGHUP
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if at is not None:
        plant(at)
    from pipelines.cli import main

    code = main(argv)
    sys.stdout.flush()
    os._exit(code)


def speak_to(log: str) -> None:
    """Send what this process and those it starts say to a file."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


def on_small_disk(argv: list[str], disk: str, keep: str, options: list[str], log: str) -> None:
    """Run the command line on a tmpfs that only this process sees, remounted with each of the
    options in turn.

    Says `exit CODE` after each, and copies the disk to `keep`. Exit code REFUSED where the system
    mounts nothing.
    """
    speak_to(log)
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(NEWNS | (0 if user == 0 else NEWUSER)):
        os._exit(REFUSED)
    if user:  # root in a user namespace of its own
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(line)
    libc.mount(b"none", b"/", None, REC | PRIVATE, None)
    if libc.mount(b"tmpfs", disk.encode(), b"tmpfs", 0, b"size=16m"):
        os._exit(REFUSED)
    from pipelines.cli import main

    for option in options:
        flags, data = (READ_ONLY, None) if option == "ro" else (0, option.encode())
        assert libc.mount(b"tmpfs", disk.encode(), b"tmpfs", REMOUNT | flags, data) == 0, (
            os.strerror(ctypes.get_errno())
        )
        print(f"exit {main(argv)}")
    shutil.copytree(disk, keep)
    os._exit(0)


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
    os.kill(os.getpid(), SIGNALS[what])


def wait_until_stopped(pid: int) -> None:
    """Wait for a child to be held by SIGSTOP; AssertionError if it ended instead."""
    while True:
        with open(f"/proc/{pid}/stat") as stat:
            state = stat.read().rpartition(")")[2].split()[0]
        if state == "T":
            return
        assert state not in "ZX", "it ended before it could be stopped"
        time.sleep(0.02)
