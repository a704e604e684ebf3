"""Schemas hold what the field's tools expect, and names depend on what they should and on nothing
else.
"""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.rows.scores import SCORES
from storage.schema import COUNTERFACTUALS, IMAGE, counterfactual_id, row_id, seed_of

WHOLE = {
    "id": "a",
    "cf_id": "b",
    "k": 0,
    "row": 0,
    "source": 0,
    "target": 1,
    "predicted": 1,
    "flipped": True,
    "method": "m",
}


@pytest.mark.parametrize("schema", [COUNTERFACTUALS, SCORES])
def test_empty_tables_go_to_parquet_and_back(schema: pa.Schema) -> None:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([], schema=schema), out)
    back = pq.read_table(io.BytesIO(out.getvalue()))
    assert back.num_rows == 0
    assert back.schema.equals(schema)


def test_a_row_without_its_names_is_not_written() -> None:
    pq.write_table(pa.Table.from_pylist([WHOLE], schema=COUNTERFACTUALS), io.BytesIO())
    for name in WHOLE:
        with pytest.raises(pa.ArrowInvalid, match=f"'{name}' .*declared non-nullable"):
            pq.write_table(
                pa.Table.from_pylist([{**WHOLE, name: None}], schema=COUNTERFACTUALS), io.BytesIO()
            )


def test_scores_carry_the_names_and_types_of_what_they_score() -> None:
    for name in ("id", "cf_id", "k", "split", "label", "source", "target", "correct", "flipped"):
        assert SCORES.field(name) == COUNTERFACTUALS.field(name)


def test_hugging_face_sees_pictures() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_arrow_schema(COUNTERFACTUALS)
    assert isinstance(features["original"], datasets.Image)
    assert isinstance(features["counterfactual"], datasets.Image)
    assert features["label"].dtype == "int32"
    assert features["original"].pa_type == IMAGE


def test_names_are_the_same_for_ever() -> None:
    """Stored runs are resumed by these names: if this fails, old runs no longer resume."""
    name = counterfactual_id("row", "method", 1, 0)
    assert row_id(b"content", "file#0") == "b0de013d7fd627406e3d3aa2280beeeb"
    assert name == "0297383ec645b3b9e2d2f3b94edd7530"
    assert seed_of("row", 0) == 819178156051045138


def test_names_differ_with_everything_they_are_made_of() -> None:
    rows = {row_id(content, key) for content in (b"", b"a", b"ab") for key in ("", "a", "b", "ab")}
    assert len(rows) == 12  # ("a", "b") and ("ab", "") among them
    names = {
        counterfactual_id(r, m, t, k)
        for r in ("a", "a,b")
        for m in ("m", "n")
        for t in (0, 1)
        for k in (0, 1)
    }
    assert len(names) == 16
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in rows | names)


def test_seeds_fill_63_bits() -> None:
    seeds = [seed_of(f"{i}", run, k) for i in range(125) for run in (0, 1) for k in (0, 1)]
    assert len(set(seeds)) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
