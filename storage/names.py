"""What no stage may hold twice, as hashes of 64 bits that commits carry, so that no data is read to
compare them.
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
    """What must be unique over a stage: (id, k), and cf_id; [] where the table has no such columns.

    Ids of quarantined rows are not among them: a row is quarantined for bearing another's id, too.
    """
    rows = table.select([name for name in COLUMNS if name in table.column_names]).to_pydict()
    nth = rows.get("k") or [0] * table.num_rows
    pairs = [json.dumps(key) for key in zip(rows.get("id", []), nth, strict=False)]
    return pairs, [str(name) for name in rows.get("cf_id", [])]


def hashes(names: Iterable[str]) -> Hashes:
    """64 bits of each name."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def pack(values: Hashes) -> str:
    """Hashes as a commit holds them: base64 of little-endian 64 bits, 11 characters each."""
    return base64.b64encode(values.astype("<u8").tobytes()).decode("ascii")


def unpack(text: str) -> Hashes:
    """The hashes that `pack` wrote; ValueError on anything else."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8")


def doubled(parts: Sequence[Hashes]) -> set[int]:
    """Hashes that are there twice; it sorts 8 bytes for each."""
    if not parts:
        return set()
    values = np.concatenate(parts)
    values.sort()
    return {int(value) for value in np.unique(values[1:][values[1:] == values[:-1]])}
