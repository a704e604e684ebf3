"""The progress line: one row that updates on a terminal, a line every 30 s in a log."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from contextlib import suppress
from typing import Any

import pytest

from pipelines.engine import progress
from pipelines.engine.progress import CLEAR, Progress
from storage.records import Receipt

RECEIPT = Receipt(index=0, rows_in=500, rows_out=490, quarantined=10, flipped=400, notes=["slow"])


def written_to(terminal: int) -> str:
    """All that was written to a pseudo-terminal whose other end is closed; a read gives a part."""
    parts = []
    with suppress(OSError):  # EIO: the end
        while part := os.read(terminal, 10_000):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


def test_a_terminal_gets_one_row_however_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        shown = Progress("generate", 1000, planned=2)
        shown.add(RECEIPT)
        shown.add(RECEIPT)
        shown.close()
    note, *lines = written_to(ours).split(CLEAR)[1:]
    assert note == "generate: slow\r\n"  # once, and it stays
    assert [len(line) for line in lines[:2]] == [39, 39]
    assert lines[0].startswith("generate: 500/1000 rows, 1 of 2 shards")
    assert lines[2].startswith("generate: 1000/1000 rows, 2 of 2 shards, ")
    assert "flipped 81.6 %, quarantined 20, took " in lines[2]
    assert lines[2].endswith("\r\n")


def test_a_log_gets_a_line_every_30_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    clock: Any = type("Clock", (), {"monotonic": staticmethod(lambda: now[0])})
    monkeypatch.setattr(progress, "time", clock)
    shown = Progress("score", 4000)
    for seconds in (1, 29, 31, 59, 62):
        now[0] = seconds
        shown.add(Receipt(index=0, rows_in=500, rows_out=500))
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "score: 1500/4000 rows, 48.4 rows/s, 52 s left",
        "score: 2500/4000 rows, 40.3 rows/s, 37 s left",
        "score: 2500/4000 rows, 40.3 rows/s, 37 s left",
    ]
