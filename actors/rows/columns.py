"""A worker's numbers as columns of a table; non-finite numbers are null, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor


def table_of(
    columns: Mapping[str, Any], schema: pa.Schema, rows: int
) -> tuple[pa.Table, dict[str, int]]:
    """Return the columns as a table of the schema, and how many rows are not finite, by column.

    A value is null where its column is missing, or a masked array or list has none. columns: (B,)
    or (B,N) tensors, arrays or lists. A row's NaN or infinity also becomes null, and so does the
    whole of a vector that has one. The counts contain only columns with such rows.
    """
    made = {name: _array(schema.field(name), values) for name, values in columns.items()}
    arrays = [
        made[field.name][0] if field.name in made else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema), {
        name: bad for name, (_, bad) in made.items() if bad
    }


def _array(
    field: pa.Field, values: Tensor | np.ndarray[Any, Any] | Sequence[Any]
) -> tuple[pa.Array, int]:
    """Return a column, and how many of its rows are not finite."""
    if isinstance(values, Tensor):
        values = values.cpu().numpy()
    if not isinstance(values, np.ndarray):
        listed = pa.array(values, field.type)
        if not pa.types.is_floating(field.type):
            return listed, 0
        good = pc.is_finite(listed)  # null where the list has None
        return pc.if_else(good, listed, pa.scalar(None, field.type)), pc.sum(
            pc.invert(good)
        ).as_py() or 0
    plain = np.asarray(np.ma.getdata(values))
    empty = (
        np.ma.getmaskarray(values)
        if isinstance(values, np.ma.MaskedArray)
        else np.zeros(plain.shape, np.bool_)
    )
    bad = (
        ~np.isfinite(plain) & ~empty if plain.dtype.kind == "f" else np.zeros(plain.shape, np.bool_)
    )
    if plain.ndim == 2:
        rows = bad.any(1)
        offsets = (
            np.arange(0, plain.size + 1, plain.shape[1], dtype=np.int32)
            if plain.size
            else [0] * (len(plain) + 1)
        )
        flat = pa.array(np.ascontiguousarray(plain).ravel()).cast(field.type.value_type)
        mask = pa.array(rows) if rows.any() else None
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=mask), int(
            rows.sum()
        )
    return pa.array(plain, mask=empty | bad).cast(field.type), int(bad.sum())
