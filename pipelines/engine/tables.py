"""Tables as files that other programs open: no cell of data becomes a formula or markup there."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.engine.terminal import printable

# What a spreadsheet takes for the beginning of a formula (OWASP: CSV injection), blanks before it
# too, since some programs strip them.
FORMULA = re.compile(r"\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
# What CommonMark and GitHub take for markup in the middle of a line; a `_` within a word is none.
MARKUP = re.compile(
    r"[\\`*|~]|(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:])|\[(?=[\^!])"
)


def to_csv(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Lines as CSV, an empty cell where there is no value; a text that a spreadsheet would compute
    gets a `'` before it.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([plain_cell(name) for name in columns])
    for line in lines:
        writer.writerow([plain_cell(line[name]) for name in columns])
    return out.getvalue().encode(errors="backslashreplace")


def plain_cell(value: Any) -> Any:
    """A cell as CSV may hold it: numbers as they are, also those that are text, since they compute
    nothing.
    """
    if isinstance(value, str):
        # the csv module quotes a cell for its \n and not for a \r, which begins a row all the same
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def escape_markdown(text: str) -> str:
    """A text within a line or a cell of Markdown, without markup of its own."""
    return MARKUP.sub(r"\\\g<0>", printable(text))
