"""Joining a shard's last revision with the rows that were tried again."""

from __future__ import annotations

import pyarrow as pa

from actors.rows.retry import Earlier, joined


def test_rows_of_a_run_begun_before_a_column_was_there_are_joined() -> None:
    schema = pa.schema(
        [("row", pa.int64()), ("k", pa.int32()), ("edits", pa.string()), ("id", pa.string())]
    )
    new = pa.table({"row": [1], "k": [0], "edits": ["{}"], "id": ["b"]}, schema=schema)
    old = pa.table({"row": [0, 2], "k": [0, 0], "id": ["a", "c"]})
    both = joined(Earlier({}, old, frozenset("ac")), new)
    assert both.schema == schema
    assert both["id"].to_pylist() == ["a", "b", "c"]
    assert both["edits"].to_pylist() == [None, "{}", None]
    assert joined(None, new) is new
