"""The doctor's check of attributes that go together in the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.rows.targets import BadTarget, class_index
from configs.schema import RunConfig
from counterfactory.metrics import together
from pipelines.doctor.classifier import in_batches
from pipelines.doctor.data import Sample
from pipelines.doctor.finding import Finding, ok, warning
from pipelines.score.measures import defining_attributes

Floats = NDArray[np.float64]


def check_together(
    config: RunConfig, sample: Sample, classes: Sequence[str], oracle: Any
) -> Iterator[Finding]:
    """Check whether attributes go together in the data, or with the class.

    Reads the columns of bool, 0 and 1, or -1 and 1 among the sampled rows' facts. Where none of
    them is one of the oracle's, the oracle (None: there is none) predicts its attributes of the
    sampled images.
    """
    data = config.data
    other = (data.label, data.id, data.split, config.target.column)
    given = {
        name: values
        for name, column in sample.facts.items()
        if name not in other and (values := read_binary(column)) is not None
    }
    if given:
        labels = sample.facts.get(data.label or "")
        values = np.stack(list(given.values()), 1)
        yield from _pairs(config, classes, list(given), values, labels, "in the data")
    if oracle is None or not len(sample.images) or not given.keys().isdisjoint(oracle.attributes):
        return
    try:
        seen = in_batches(oracle, sample.tensor()).numpy()
    except Exception:  # check_oracle reports it
        return
    if np.isfinite(seen).all():
        labels = [row.get(data.label or "") for row in sample.records]
        values = (seen > config.score.threshold).astype(np.float64)
        where = "in the sampled images, as the oracle sees them"
        yield from _pairs(config, classes, list(oracle.attributes), values, labels, where)


def _pairs(
    config: RunConfig,
    classes: Sequence[str],
    names: list[str],
    values: Floats,
    labels: Sequence[Any] | None,
    where: str,
) -> Iterator[Finding]:
    known = [label_index(label, tuple(classes)) for label in labels or [None] * len(values)]
    indices = np.array([np.nan if index is None else index for index in known])
    shown, columns = together.class_columns(indices, classes)
    sums = together.update(np.concatenate([columns, values], axis=1))
    pairs = together.find_pairs(sums, [*shown, *names], len(shown), defining_attributes(config))
    for text, advice in together.describe(pairs):
        yield warning("attributes", f"{where}, {text}", advice)
    if not pairs:
        told = f"|phi| < {together.TOGETHER:g} for all pairs of {len(names)} attributes and class"
        yield ok("attributes", f"{where}, none go together: {told}, {len(values):,} rows")


def read_binary(column: Sequence[Any]) -> Floats | None:
    """Return a column of bool, 0 and 1, or -1 and 1 as 0 and 1 (B,), NaN where a cell is missing;
    None for a column of anything else.
    """
    cells = [None if isinstance(cell, float) and isnan(cell) else cell for cell in column]
    found = {cell for cell in cells if isinstance(cell, int | float)}
    if not found or not (found <= {0, 1} or found <= {-1, 1}):
        return None
    if any(cell is not None and not isinstance(cell, int | float) for cell in cells):
        return None
    return np.array([np.nan if cell is None else float(cell > 0) for cell in cells])


def label_index(value: object, classes: tuple[str, ...]) -> int | None:
    """Return the index of the class that a label names; None where it names none."""
    try:
        return class_index(value, classes, "label")
    except BadTarget:
        return None
