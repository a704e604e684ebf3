"""SIGTERM and SIGHUP end a command as Ctrl-C does: notes, one line, exit code 128 + n."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from storage.s3_retry import hurry

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The process is to end; a KeyboardInterrupt, so that what holds for Ctrl-C holds here."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise Stopped in the main thread where one of SIGNALS comes; one that is ignored (nohup)
    stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    take_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def report_stop(stop: KeyboardInterrupt) -> int:
    """Print the line of a command that was stopped; returns its exit code."""
    line = "stopped; what is committed stays, the same command goes on from there"
    print(f"counterfactory: {line}", file=sys.stderr)
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def take_signals() -> None:
    """Take the signals (again): Ray puts handlers of its own in the place of ours."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    hurry()  # whoever waits for S3, in other threads too, waits no longer
    raise Stopped(number)
