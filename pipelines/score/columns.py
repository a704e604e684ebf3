"""Columns of committed tables as arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return a column of numbers or flags as float64, null as NaN."""
    plain = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    return np.asarray(plain.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def has_vectors(shard: pa.Table, name: str) -> NDArray[np.bool_]:
    """Return which rows have vectors, (B,). The worker omits both vectors of a row where either is
    not finite.
    """
    return np.asarray(shard[f"{name}_after"].is_valid().to_numpy(), dtype=np.bool_)


def vectors(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return a column of lists of equal length as (B,A) float64, without nulls."""
    rows = column.drop_null()
    flat = np.asarray(pc.list_flatten(rows).to_numpy(), dtype=np.float64)
    return flat.reshape(len(rows), -1) if len(rows) else np.zeros((0, 0))
