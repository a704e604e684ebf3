"""Writes settings as YAML for people, with the findings as comments behind them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

WIDTH = 100


def to_yaml(head: str, settings: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Return the settings as YAML under a comment; notes: comments on settings by dotted name."""
    lines = [*(f"# {line}".rstrip() for line in head.splitlines()), *_lines(settings, notes, "", 0)]
    return "\n".join(lines) + "\n"


def _lines(
    settings: Mapping[str, Any], notes: Mapping[str, str], above: str, depth: int
) -> Iterator[str]:
    indent = "  " * depth
    for name, value in settings.items():
        note = " ".join(notes.get(f"{above}{name}", "").split())
        group = isinstance(value, dict) and bool(value)
        line = f"{indent}{_flow(name)}:" + ("" if group else f" {_flow(value)}")
        if note and len(line) + len(note) + 4 <= WIDTH:
            line += f"  # {note}"
        elif note:
            yield from textwrap.wrap(
                note, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        yield line
        if group:
            yield from _lines(value, notes, f"{above}{name}.", depth + 1)


def _flow(value: Any) -> str:
    """Return a value in one line, quoted where YAML would read it as another type."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()
