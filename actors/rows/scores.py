"""The schema of scores: a row's own columns, and every metric's columns."""

from __future__ import annotations

import pyarrow as pa

from counterfactory.metrics.catalogue import METRICS
from storage.schema import COUNTERFACTUALS

NAMES = ("id", "cf_id", "k", "split", "label", "source", "target", "correct", "flipped")
KINDS = {"float": pa.float64(), "int": pa.int32(), "floats": pa.list_(pa.float32())}

SCORES = pa.schema(
    [
        *(COUNTERFACTUALS.field(name) for name in NAMES),
        *(
            pa.field(name, KINDS[kind])
            for metric in METRICS
            for name, kind in metric.columns.items()
        ),
    ]
)
