"""The progress of a long job, on one line."""

from __future__ import annotations

import os
import sys
import time

from pipelines.engine.terminal import printable
from storage.records import Receipt

LOG_EVERY = 30.0
CLEAR = "\r\x1b[K"


class Progress:
    """Rows done, speed, flip rate, quarantined rows and time left, counted from receipts.

    Updates one line on a terminal. Prints a line every 30 s, and one at the end, to a log.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        done: int = 0,
        planned: int | None = None,
        counted: str = "rows",
    ) -> None:
        self.what, self.total, self.counted = what, total, counted
        self.shards, self.planned = done, planned
        self.rows = self.quarantined = self.flipped = self.judged = self.answered = 0
        self.started = self.said = time.monotonic()
        self.live = sys.stderr.isatty()
        self.noted: set[str] = set()

    def add(self, receipt: Receipt, *, rows: int | None = None, shards: int = 1) -> None:
        """Count one shard's receipt, and print its notes.

        rows: the number processed, where not all rows of the shard; shards: 0 where the shard was
        committed before.
        """
        for text in receipt.notes:
            if text not in self.noted:
                self.noted.add(text)
                note(f"{self.what}: {text}", clear=self.live)
        self.rows += receipt.rows_in if rows is None else rows
        self.shards += shards
        self.quarantined += receipt.quarantined
        if receipt.flipped is not None:
            self.flipped += receipt.flipped
            self.judged += receipt.rows_out if receipt.answers is None else receipt.answers
            self.answered += receipt.rows_out
        now = time.monotonic()
        if self.live:
            # one row of the terminal: a second row would not be cleared
            print(f"{CLEAR}{self.line()[: _width()]}", end="", file=sys.stderr, flush=True)
        elif now - self.said >= LOG_EVERY:
            self.said = now
            note(self.line())

    def close(self) -> None:
        """Print the last line, also where the job did not finish."""
        note(self.line(), clear=self.live)

    def line(self) -> str:
        """Return the current line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        speed = self.rows / seconds
        parts = [f"{self.what}: {self.rows}/{self.total} {self.counted}"]
        if self.counted == "rows":
            parts.append(f"{speed:.1f} rows/s")
        if self.planned is not None:
            parts.insert(1, f"{self.shards:,} of {self.planned:,} shards")
        if self.judged:
            several = f" of {self.judged} answers" if self.judged > self.answered else ""
            parts.append(f"flipped {100 * self.flipped / self.judged:.1f} %{several}")
        if self.quarantined:
            parts.append(f"quarantined {self.quarantined}")
        left = self.total - self.rows
        if left > 0 and self.rows:
            parts.append(f"{_clock(left / speed)} left")
        elif left <= 0:
            parts.append(f"took {_clock(seconds)}")
        return ", ".join(parts)


def note(text: str, *, clear: bool = False) -> None:
    """Print a line that stays; clear: first clear the line that updates."""
    print(f"{CLEAR if clear else ''}{printable(text)}", file=sys.stderr, flush=True)


def _width() -> int | None:
    """Return how many characters fit into a row of the terminal; None where it is unknown."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return None
    return columns - 1 if columns > 1 else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
