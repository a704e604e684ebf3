"""Numbers as columns: nulls, lists, and numbers that are none."""

import numpy as np
import pyarrow as pa
import torch

from actors.rows.columns import table_of
from counterfactory.metrics.pairs import finite_pairs

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("x", pa.float64()),
        ("share", pa.float64()),
        ("n", pa.int32()),
        ("vector", pa.list_(pa.float32())),
        ("not_measured", pa.list_(pa.float32())),
    ]
)


def test_a_table_of_tensors_arrays_and_lists() -> None:
    columns = {
        "id": ["a", "b"],
        "x": torch.tensor([0.5, 1.0], dtype=torch.float64),
        "share": np.ma.masked_invalid([0.25, np.nan]),
        "n": np.array([1.0, 2.0]),
        "vector": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    }
    table, missing = table_of(columns, SCHEMA, 2)
    assert missing == {}
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {"id": "a", "x": 0.5, "share": 0.25, "n": 1, "vector": [1, 2, 3], "not_measured": None},
        {"id": "b", "x": 1.0, "share": None, "n": 2, "vector": [4, 5, 6], "not_measured": None},
    ]


def test_no_rows() -> None:
    table, _ = table_of({"id": [], "x": torch.zeros(0), "vector": torch.zeros(0, 7)}, SCHEMA, 0)
    assert (table.num_rows, table.schema.equals(SCHEMA)) == (0, True)


def test_a_number_that_is_none_is_null_and_counted() -> None:
    columns = {
        "x": torch.tensor([1.0, torch.inf, torch.nan]),
        "share": [None, float("nan"), 0.5],
        "n": np.array([np.nan, 1.0, 2.0]),
        "vector": np.array([[0.0, 1.0], [np.nan, 0.0], [2.0, 3.0]]),
    }
    table, missing = table_of(columns, SCHEMA, 3)
    assert missing == {"x": 2, "share": 1, "n": 1, "vector": 1}
    assert table.select(["x", "share", "n", "vector"]).to_pydict() == {
        "x": [1, None, None],
        "share": [None, None, 0.5],
        "n": [None, 1, 2],
        "vector": [[0, 1], None, [2, 3]],
    }


def test_half_a_pair_that_is_no_number_takes_the_other_along() -> None:
    before, after = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    assert finite_pairs(before, after)[0] is before
    after[1, 0, 1] = torch.inf
    found = finite_pairs(before, after)
    assert [side.isnan().flatten(1).all(1).tolist() for side in found] == [[False, True, False]] * 2
    assert found[1][[0, 2]].eq(1).all()
