"""Text from data, made safe to print."""

from __future__ import annotations

import re

# What a terminal acts on (C0 with ESC, DEL, C1), what breaks a line or turns its direction (an id
# may then read as another), and lone surrogates, which no encoding prints.
ACTIVE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    r"""The text with control characters escaped as in Python: ESC becomes `\x1b`; keep: characters
    that stay, such as the line breaks of a text of ours.
    """
    return ACTIVE.sub(
        lambda found: (
            found[0] if found[0] in keep else found[0].encode("unicode_escape").decode("ascii")
        ),
        text,
    )


def print_line(line: str) -> None:
    """Print a text of ours, in one or several lines, at once."""
    print(printable(line, keep="\n"), flush=True)
