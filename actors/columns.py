"""A worker's numbers as columns of a table, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor


class NotFiniteError(ValueError):
    """A number that is none: its column, its row within the batch, and what stands there."""

    def __init__(self, column: str, row: int, value: Any) -> None:
        super().__init__(f"expected a finite {column}, got {value}")
        self.column, self.row = column, row


def table_of(columns: Mapping[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    """The columns as a table of the schema, null where a column is missing or a masked array or list says so.

    columns: (B,) or (B,N) tensors, arrays or lists. NotFiniteError names the first number that is NaN or infinite.
    """
    made = {name: _array(schema.field(name), values) for name, values in columns.items()}
    arrays = [made[field.name] if field.name in made else pa.nulls(rows, field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(field: pa.Field, values: Tensor | np.ndarray[Any, Any] | Sequence[Any]) -> pa.Array:
    if isinstance(values, Tensor):
        values = values.cpu().numpy()
    if not isinstance(values, np.ndarray):
        return pa.array(values, field.type)
    empty = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    plain = np.asarray(np.ma.getdata(values))
    if plain.dtype.kind == "f":
        good = np.isfinite(plain) if empty is None else np.isfinite(plain) | empty
        if not good.all():
            row = int(np.flatnonzero(~good.reshape(len(plain), -1).all(1))[0])
            raise NotFiniteError(field.name, row, plain[row].tolist())
    if plain.ndim == 2:
        offsets = np.arange(0, plain.size + 1, plain.shape[1], dtype=np.int32) if plain.size else [0] * (len(plain) + 1)
        flat = pa.array(np.ascontiguousarray(plain).ravel()).cast(field.type.value_type)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    return pa.array(plain, mask=empty).cast(field.type)
