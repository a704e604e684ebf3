"""Reads a judge's answers from files as servers and editors write them."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

from actors.judge.answer import BadAnswer, read_answer
from configs.strict import UserError
from storage.uri import open_store, split_url

ANSWER_FILE = re.compile(r"\.(jsonl|ndjson|json)(\.gz)?\Z", re.IGNORECASE)
MOST_BYTES = 2 * 2**30  # the most bytes of an unpacked file
# Text between a file's values: JSON lines, a JSON array, JSON text sequences (RFC 7464).
GAP = re.compile(r"[\s,\[\]\x1e\ufeff]*")
LINE_END = re.compile(r"[\r\n]|\Z")
TAKEN = 1000  # most broken values that are read past their line
BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# JSON begins with ASCII, so without a mark the zeros among the first bytes show the encoding
ZEROS = {
    (1, 3): "utf-16-le",
    (0, 2): "utf-16-be",
    (1, 2, 3): "utf-32-le",
    (0, 1, 2): "utf-32-be",
}
decoder = json.JSONDecoder()


def read_answers(path: str) -> Iterator[tuple[str | None, dict[str, int] | BadAnswer]]:
    """Return the custom_id and the scores of each answer of a file or a folder.

    A folder's answer files are read in the order of their names. A file holds JSON lines, one JSON
    array or JSON values one after the other, compressed with gzip or not, in UTF-8, UTF-16 or
    UTF-32 with or without a byte order mark. UserError where there is no such file or where it
    cannot be unpacked.
    """
    folder, name = split_url(open_store(path).uri)
    names = [name]
    if not folder.is_file(name):
        folder = open_store(path)
        names = [file for file in folder.list("") if ANSWER_FILE.search(file)]
    if not names:
        raise UserError(f"answers: expected a JSONL file or a folder of them, got {path}")
    for file in names:
        for value in read_values(to_text(folder.read(file), folder.url(file))):
            yield read_answer(value)


def to_text(data: bytes, where: str) -> str:
    """Return a file's text; bytes that are invalid in its encoding become U+FFFD."""
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"answers: expected a whole gzip file, got {where}: {error}") from None
        if len(data) > MOST_BYTES:
            raise UserError(f"answers: expected at most {MOST_BYTES:,} bytes unpacked in {where}")
    encoding = next((name for mark, name in BOMS if data.startswith(mark)), None)
    if encoding is None:
        zeros = tuple(place for place, byte in enumerate(data[:4]) if byte == 0)
        encoding = ZEROS.get(zeros, "utf-8-sig")
    return data.decode(encoding, errors="replace")


def read_values(text: str) -> Iterator[Any]:
    """Return the JSON objects of a text, also those in an array, and None for each invalid line."""
    at = failed = 0
    while (at := _after(text, at)) < len(text):
        end = LINE_END.search(text, at).start()  # type: ignore[union-attr]  # \Z is always found
        try:
            if text[at] != "{":
                raise ValueError
            if failed < TAKEN:
                value, at = decoder.raw_decode(text, at)
            else:  # an error costs time in the length of the text read, so read one line only
                value, at = json.loads(text[at:end].rstrip(", ]")), end
        except (ValueError, RecursionError):
            failed += 1
            value, at = None, end
        yield value


def _after(text: str, at: int) -> int:
    return GAP.match(text, at).end()  # type: ignore[union-attr]  # matches nothing, too
