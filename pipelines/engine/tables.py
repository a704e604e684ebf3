"""Tables as files for other programs, in which no cell of data is read as a formula or as
markup.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.engine.terminal import printable

# What a spreadsheet reads as the start of a formula (OWASP: CSV injection), also after blanks,
# since some programs strip them.
FORMULA = re.compile(r"\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
# What CommonMark and GitHub read as markup within a line; a `_` within a word is not markup.
MARKUP = re.compile(
    r"[\\`*|~]|(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:])|\[(?=[\^!])"
)


def to_csv(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Return lines as CSV, with an empty cell where there is no value. Puts a `'` before a text
    that a spreadsheet would compute.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([plain_cell(name) for name in columns])
    for line in lines:
        writer.writerow([plain_cell(line[name]) for name in columns])
    return out.getvalue().encode(errors="backslashreplace")


def plain_cell(value: Any) -> Any:
    """Return a cell as it is safe in CSV. Numbers are unchanged, also those that are text, since
    they compute nothing.
    """
    if isinstance(value, str):
        # the csv module quotes a cell for \n but not for \r, although \r also starts a row
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def escape_markdown(text: str) -> str:
    """Return a text for a line or a cell of Markdown, with its own markup escaped."""
    return MARKUP.sub(r"\\\g<0>", printable(text))
