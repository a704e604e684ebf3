"""`counterfactory review RUN`: a page on localhost on which people judge a run's rows."""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import signal
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING

from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.engine.stop import RECEIVED, Stopped
from pipelines.engine.terminal import print_line
from storage.errors import StorageError

if TYPE_CHECKING:
    from storage.uri import Store  # it imports pyarrow

TICK = 3600.0  # seconds between two looks of the waiting thread


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add the options of `review`."""
    sub.add_argument("run", help="a run's folder, or its config")
    sub.add_argument("--reviewer", metavar="NAME", help="whose verdicts these are (default: asked)")
    sub.add_argument(
        "--port", type=int, default=0, help="of 127.0.0.1 (default: a free one, which is printed)"
    )
    sub.add_argument("--no-browser", action="store_true", help="open no browser")
    sub.add_argument(
        "--summary", action="store_true", help="print verdicts and agreement, and serve nothing"
    )


def main(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, or print the summary; returns the exit code."""
    from pipelines.engine.disk import disk_errors  # not above: it imports pyarrow
    from pipelines.run import find_run

    if not 0 <= args.port <= 65535:
        raise UserError(f"--port: expected 0 to 65535, got {args.port}")
    store, config = find_run(args.run, [])
    with disk_errors(store.uri):
        if args.summary:
            print_line(summary(store, config))
            return 0
        return review(store, config, args.reviewer, args.port, browser=not args.no_browser)


def summary(store: Store, config: RunConfig) -> str:
    """Return the verdicts of a run and their agreement as text."""
    from pipelines.review.index import read_rows
    from pipelines.review.verdicts import Book, describe, summarize

    rows = read_rows(store, config)
    return "\n".join(describe(summarize(rows, Book(store)), rows.judges))


def review(
    store: Store, config: RunConfig, reviewer: str | None, port: int, *, browser: bool
) -> int:
    """Serve a run's page until Ctrl-C, which is the usual end: exit code 0.

    Afterwards the judge is compared with the verdicts, where there is one, and the manifest lists
    the new files. UserError where the port is taken, or nothing has been generated.
    """
    from pipelines.engine.serving import serve
    from pipelines.review.index import read_rows
    from pipelines.review.server import Review, application, expect_name
    from pipelines.review.verdicts import Book
    from pipelines.review.views import Views

    try:
        name = None if reviewer is None else expect_name(reviewer)
    except ValueError as error:
        raise UserError(f"--reviewer: {error}") from None
    rows = read_rows(store, config)
    shown = Review(
        name=config.name,
        rows=rows,
        views=Views(store, config, rows),
        book=Book(store),
        token=secrets.token_urlsafe(32),
        reviewer=name,
        suggested=user_name(),
    )
    stopped: KeyboardInterrupt | None = None
    try:
        with serve(application(shown), port) as address:
            url = f"{address}/?token={shown.token}"
            print_line(f"review: {len(rows):,} rows of {config.name} at {url}")
            print_line("  Ctrl-C ends it; every verdict is stored when the page shows it")
            sys.stdout.flush()
            if browser and has_display():
                webbrowser.open(url)
            try:
                while True:
                    threading.Event().wait(TICK)
            except KeyboardInterrupt as stop:
                stopped = stop
    except OSError as error:
        if error.errno is None or isinstance(error, StorageError) or not port:
            raise
        raise UserError(f"--port: expected a free port, got {port}: {error.strerror}") from None
    RECEIVED.clear()
    close(store, config, shown.book.log.added)
    if isinstance(stopped, Stopped) and stopped.number != signal.SIGINT:
        raise stopped
    return 0


def close(store: Store, config: RunConfig, added: int) -> None:
    """Compare the judge with the verdicts, add the new files to the manifest, and print a line.

    added: the records that this server wrote.
    """
    from pipelines.augment.calibration import calibrated_lines
    from storage.run import add_products

    lines = [f"review: stopped; {added:,} verdicts and undos stored in {store.uri}/review"]
    if added:
        lines += calibrated_lines(store, config)
        add_products(store)
    print_line("\n".join(lines))


def user_name() -> str:
    """Return the account's name, to offer; "" where the system has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


def has_display() -> bool:
    """Return whether a browser can open a window; else it would take over the terminal."""
    named = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return named or sys.platform in ("darwin", "win32")
