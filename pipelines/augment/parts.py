"""The augmentation set's Parquet files, which Hugging Face `datasets` and pandas can both read."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pyarrow as pa

from pipelines.augment.judged import JUDGED
from storage.schema import IMAGE
from storage.tables import parquet_writer, to_parquet
from storage.uri import Store

PARTS = "augment/data/part-"
PART_BYTES = 64_000_000  # size of a file before the next one begins
# most rows and bytes of a row group, so that readers can read a part in pieces
GROUP_ROWS, GROUP_BYTES = 256, 16_000_000


def schema_of(classes: list[str]) -> pa.Schema:
    """Return the set's schema, with the metadata that `datasets` needs for Image and ClassLabel
    columns.
    """
    columns: list[tuple[str, pa.DataType]] = [
        ("id", pa.string()),  # cf_id
        ("image", IMAGE),
        ("original", IMAGE),
        ("label", pa.int64()),
        ("label_name", pa.string()),
        ("probabilities", pa.list_(pa.float64())),  # of the classes, with augment.label: soft
        ("source_id", pa.string()),
        ("k", pa.int32()),  # which of the answers to its row
        ("method", pa.string()),
        ("run", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("original_label", pa.string()),
        *(
            (name, pa.float64())
            for name in (
                "p_target",
                "cout",
                "l1",
                "l2",
                "sparsity",
                "second_p_target",
                "causal_share",
            )
        ),
        ("changed_spurious", pa.int32()),
        ("judge", pa.float64()),
        *((name, pa.float64()) for name in JUDGED),
    ]
    features: dict[str, Any] = {
        name: {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
        for name, kind in columns
    }
    features["image"] = features["original"] = {"_type": "Image"}
    features["probabilities"] = {
        "feature": {"dtype": "float64", "_type": "Value"},
        "_type": "Sequence",
    }
    features["label"] = {"names": classes, "_type": "ClassLabel"}
    return pa.schema(
        columns, metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    )


class Parts:
    """A writer of Parquet files of about 64 MB each. It holds one of them in memory."""

    def __init__(self, store: Store, schema: pa.Schema) -> None:
        self.store, self.schema = store, schema
        self.files: list[str] = []
        self.digest = hashlib.sha256()  # of the files' bytes, one after the other
        self._begin()

    def add(self, row: dict[str, Any]) -> None:
        """Add one row of the schema."""
        self.rows.append(row)
        self.bytes += len(row["image"]["bytes"]) + len(row["original"]["bytes"])
        if len(self.rows) == GROUP_ROWS or self.bytes >= GROUP_BYTES:
            self._group()
            if self.out.tell() >= PART_BYTES:
                self._end()

    def close(self) -> list[str]:
        """Write the remaining rows and return the parts' names.

        Writes at least one part. Empties further parts of an earlier, larger set.
        """
        self._group()
        if not self.empty or not self.files:
            self._end()
        for path in self.store.list("augment"):
            if path.startswith(PARTS) and path not in self.files:
                self.store.replace(path, to_parquet(self.schema.empty_table()))
        return self.files

    def _begin(self) -> None:
        self.out, self.empty = io.BytesIO(), True
        self.writer = parquet_writer(self.out, self.schema)
        self.rows: list[dict[str, Any]] = []
        self.bytes = 0

    def _group(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows, self.bytes, self.empty = [], 0, False

    def _end(self) -> None:
        self.writer.close()
        self.files.append(f"{PARTS}{len(self.files):05d}.parquet")
        data = self.out.getvalue()
        self.digest.update(data)
        self.store.replace(self.files[-1], data)
        self._begin()
