"""The doctor's findings: one line for each check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pipelines.engine.terminal import printable


@dataclass(frozen=True)
class Finding:
    """What was checked, the result, and advice; a problem stops or spoils a run."""

    level: Literal["ok", "warning", "problem"]
    about: str
    text: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.about}: {one_line(self.text)}" + (
            f": {one_line(self.do)}" if self.do else ""
        )


def ok(about: str, text: str) -> Finding:
    return Finding("ok", about, text)


def warning(about: str, text: str, do: str = "") -> Finding:
    return Finding("warning", about, text, do)


def problem(about: str, text: str, do: str = "") -> Finding:
    return Finding("problem", about, text, do)


def one_line(error: object) -> str:
    """Return a message without line breaks and control characters.

    Cuts it after 400 characters, because some libraries write pages.
    """
    text = printable(" ".join(str(error).split()))
    return text if len(text) <= 400 else f"{text[:400]} ..."


def format_commonest(counts: Counter[str], show: int = 3) -> str:
    """Return the most frequent reasons: `truncated PNG (12), 0 bytes (3) and 2 other reasons`."""
    named = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(show))
    return named + (f" and {len(counts) - show} other reasons" if len(counts) > show else "")
