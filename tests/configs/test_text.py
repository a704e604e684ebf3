"""Text and YAML of anybody's making: read as what it is, or refused in one line, at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.strict import UserError, apply_sets, parse_yaml, read_preset
from configs.text import decode_text, read_yaml

PLAIN = "name: café\nrows: 12\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_in_any_unicode_encoding_is_read(
    encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(PLAIN.encode(encoding))
    for _ in range(2):
        assert read_preset("run", str(path)) == {"name": "café", "rows": 12}
    note = f"counterfactory: {path} is read as UTF-16: other tools want UTF-8\n"
    assert capsys.readouterr().err == (note if encoding == "utf-16" else "")


def test_a_config_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(("rows: 3\n" + PLAIN).encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_preset("run", str(path))
    assert str(error.value) == (
        f"{path} line 2: expected text in UTF-8, got the byte 0xe9: save the file as UTF-8"
    )


def test_half_a_utf_16_file_is_no_text() -> None:
    with pytest.raises(ValueError, match="f line 1: expected text in UTF-8, got the byte"):
        decode_text("ab".encode("utf-16")[:-1], "f")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (BOMB, "more than 100,000 values, aliases written out"),
        ("a: &a\n  b: *a\n", "a value that holds itself"),
        ("[" * 3000 + "]" * 3000, "more than 100 levels"),
        ("\n".join(" " * n + "a:" for n in range(150)), "more than 100 levels"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("day: 2026-13-45", "month must be in 1..12"),
        ('name: "\\ud800"', "the character '\\ud800', which is no text"),
        ('name: "\\0"', "the character '\\x00', which is no text"),
        ("rows: 1\nrows: 2\n", "the key 'rows' twice"),
        ("a: {b: 1, b: 2}", "the key 'b' twice"),
        ("? [1]\n: 2", "unhashable key"),
        ("a: !!python/name:os.system x", "could not determine a constructor"),
        ("a: [1, 2", "while parsing a flow sequence"),
        ("a: \x07", "special characters are not allowed"),
    ],
)
def test_what_no_setting_can_hold_is_refused_in_a_line(text: str, got: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml(text)
    with pytest.raises(UserError, match=r"mine\.yaml: expected YAML, got ") as error:
        parse_yaml(text, "mine.yaml")
    assert got in str(error.value)
    assert len(str(error.value)) < 350
    assert "\n" not in str(error.value)


def test_aliases_and_merges_of_a_sane_size_stay() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n"
    assert read_yaml(text) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


def test_a_setting_on_the_command_line_is_text() -> None:
    with pytest.raises(UserError, match=r"--set: expected text, got 'name=\\udcff'"):
        apply_sets({}, ["name=\udcff"], {})
