"""SIGTERM and SIGHUP end a command as Ctrl-C does: with its notes, one line and exit code
128 + n.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from storage.s3_retry import hurry

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
RECEIVED: list[int] = []  # signals that arrived since the command began


class Stopped(KeyboardInterrupt):
    """The process must end. A KeyboardInterrupt, so that code for Ctrl-C also handles it."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise Stopped in the main thread when one of SIGNALS or SIGINT arrives; an ignored signal
    (nohup) stays ignored.

    Any error after that is the stop's: an import that a signal interrupts leaves half a module, and
    code that uses it fails in another way. A destructor swallows the exception: `raise_if_stopped`
    raises it again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
    RECEIVED.clear()
    take_signals()
    shown, sys.unraisablehook = sys.unraisablehook, _without_stops(sys.unraisablehook)
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    try:
        yield
    except Exception as error:
        if RECEIVED:
            raise Stopped(RECEIVED[0]) from error
        raise
    finally:
        RECEIVED.clear()
        sys.unraisablehook = shown
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def raise_if_stopped() -> None:
    """Raise Stopped where a signal arrived and its exception did not end the command."""
    if RECEIVED:
        raise Stopped(RECEIVED[0])


def report_stop(stop: KeyboardInterrupt) -> int:
    """Print the line of a stopped command and return its exit code."""
    line = "stopped; what is committed stays, the same command goes on from there"
    print(f"counterfactory: {line}", file=sys.stderr)
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def take_signals() -> None:
    """Install our signal handlers (again): Ray replaces them with its own."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _stop)


def _without_stops(
    hook: Callable[[sys.UnraisableHookArgs], object],
) -> Callable[[sys.UnraisableHookArgs], object]:
    """Return a hook for ignored exceptions that prints no traceback of Stopped."""

    def shown(ignored: sys.UnraisableHookArgs) -> None:
        if not isinstance(ignored.exc_value, Stopped):
            hook(ignored)

    return shown


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    RECEIVED.append(number)
    hurry()  # ends all waiting for S3, in other threads too
    raise Stopped(number)
