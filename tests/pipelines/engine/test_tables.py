"""Cells and texts from data, as spreadsheets, Markdown and terminals must not act on them."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from pipelines.engine.tables import escape_markdown, plain_cell, to_csv
from pipelines.engine.terminal import print_line, printable


@pytest.mark.parametrize(
    "text",
    [
        "=cmd|' /C calc'!A0",
        "+1+cmd",
        "-2+3",
        "@SUM(A1)",
        "\t=1+1",
        "\n=1",
        "  =1+1",
        '=HYPERLINK("http://a","b")',
        "\uff1d1+1",
    ],
)
def test_a_cell_that_a_spreadsheet_would_compute_becomes_text(text: str) -> None:
    rows = list(
        csv.reader(io.StringIO(to_csv(["a", text], [{"a": text, text: -0.5}]).decode(), newline=""))
    )
    assert rows == [["a", f"'{text}"], [f"'{text}", "-0.5"]]


@pytest.mark.parametrize("value", ["-0.5", "+3", "-1e-05", -1, 2.5, None, "", "a=b", "not -> yes"])
def test_numbers_and_plain_texts_stay_as_they_are(value: Any) -> None:
    assert plain_cell(value) == value


def test_no_cell_begins_a_row() -> None:
    written = to_csv(["a", "b"], [{"a": "x\r=1", "b": "y\r\n@z"}])
    assert written == b'a,b\n"x\n=1","y\n@z"\n'


def test_markdown_of_data_is_text() -> None:
    text = escape_markdown("a|b <img src=x> [go](http://x) `c` **d** \\ ![i](j) _e_\n# f &lt;")
    assert text == (
        r"a\|b \<img src=x> [go\](http://x) \`c\` \*\*d\*\* \\ ![i\](j) \_e\_\\n# f \&lt;"
    )
    for plain in ("not_smiling", "fid[faces-oracle] (flipped)", "p < 0.05 & q", "changed[Young]"):
        assert escape_markdown(plain) == plain


def test_a_terminal_is_sent_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    text = "id\x1b]0;owned\x07\x9b31m\r\u202egnp.exe\ud800"
    assert printable(text) == r"id\x1b]0;owned\x07\x9b31m\r\u202egnp.exe\ud800"
    print_line(f"one\n{text}")
    assert capsys.readouterr().out == f"one\n{printable(text)}\n"
    assert printable("naïve 猫 → 🧑") == "naïve 猫 → 🧑"
