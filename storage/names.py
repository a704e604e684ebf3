"""Names that must be unique in a stage, as 64-bit hashes.

Commits hold the hashes, so that names can be compared without reading data.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
COLUMNS = ("id", "cf_id", "k")


def keys(table: pa.Table) -> tuple[list[str], list[str]]:
    """Return the names that must be unique in a stage: (id, k), and cf_id.

    Returns [] where the table has no such columns. Ids of quarantined rows are not included,
    because one reason for quarantine is a duplicate id.
    """
    rows = table.select([name for name in COLUMNS if name in table.column_names]).to_pydict()
    nth = rows.get("k") or [0] * table.num_rows
    pairs = [json.dumps(key) for key in zip(rows.get("id", []), nth, strict=False)]
    return pairs, [str(name) for name in rows.get("cf_id", [])]


def hashes(names: Iterable[str]) -> Hashes:
    """Return 64 bits of hash for each name."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def pack(values: Hashes) -> str:
    """Return hashes in the form of a commit: base64 of little-endian 64 bits, 11
    characters each.
    """
    return base64.b64encode(values.astype("<u8").tobytes()).decode("ascii")


def unpack(text: str) -> Hashes:
    """Return the hashes that `pack` wrote; ValueError for any other text."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8")


def doubled(parts: Sequence[Hashes]) -> set[int]:
    """Return the hashes that are there twice; sorts 8 bytes for each hash."""
    if not parts:
        return set()
    values = np.concatenate(parts)
    values.sort()
    return {int(value) for value in np.unique(values[1:][values[1:] == values[:-1]])}
