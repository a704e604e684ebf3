"""Text from data, made safe to print."""

from __future__ import annotations

import re

# Characters that a terminal acts on (C0 with ESC, DEL, C1), that break a line or change its
# direction (an id may then look like another), and lone surrogates, which no encoding can print.
ACTIVE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    r"""Return the text with control characters escaped as in Python: ESC becomes `\x1b`.

    keep: characters that are not escaped, such as the line breaks of our own text.
    """
    return ACTIVE.sub(
        lambda found: (
            found[0] if found[0] in keep else found[0].encode("unicode_escape").decode("ascii")
        ),
        text,
    )


def print_line(line: str) -> None:
    """Print our own text of one or several lines, and flush."""
    print(printable(line, keep="\n"), flush=True)
