"""Numbers as columns: nulls, lists, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.columns import NotFiniteError, table_of

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
    table = table_of(columns, SCHEMA, 2)
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {"id": "a", "x": 0.5, "share": 0.25, "n": 1, "vector": [1, 2, 3], "not_measured": None},
        {"id": "b", "x": 1.0, "share": None, "n": 2, "vector": [4, 5, 6], "not_measured": None},
    ]


def test_no_rows() -> None:
    table = table_of({"id": [], "x": torch.zeros(0), "vector": torch.zeros(0, 7)}, SCHEMA, 0)
    assert (table.num_rows, table.schema.equals(SCHEMA)) == (0, True)


def test_a_number_that_is_none_is_refused_by_its_row() -> None:
    with pytest.raises(NotFiniteError, match="expected a finite x, got inf") as caught:
        table_of({"x": torch.tensor([1.0, torch.inf, torch.nan])}, SCHEMA, 3)
    assert (caught.value.column, caught.value.row) == ("x", 1)
    with pytest.raises(NotFiniteError, match="expected a finite vector") as caught:
        table_of({"vector": np.array([[0.0, 1.0], [np.nan, 0.0]])}, SCHEMA, 2)
    assert caught.value.row == 1
