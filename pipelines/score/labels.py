"""The labels of a data set's attributes and how they correlate: the reference for correlation
difference.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from configs.strict import UserError, nearest
from counterfactory.metrics import correlation
from counterfactory.metrics.correlation import CorrelationSums
from storage.tables import damage_named
from storage.uri import Store, data_files


def expect_labels(path: str, names: list[str]) -> None:
    """Raise UserError where a file of score.cd_labels lacks an attribute's column."""
    for store, name in _files(path):
        with damage_named(store.url(name)), store.parquet(name) as file:
            _expect_columns(file.schema_arrow.names, names, store.url(name))


def _files(path: str) -> list[tuple[Store, str]]:
    try:
        return data_files(path)
    except FileNotFoundError as error:
        raise UserError(f"score.cd_labels: {error}") from None


def _expect_columns(found: list[str], names: list[str], where: str) -> None:
    for wanted in names:
        if (count := found.count(wanted)) != 1:
            hint = nearest(wanted, found) if not count else "write the file again with one"
            raise UserError(
                "score.cd_labels: expected a column for each of the oracle's attributes in"
                f" {where}, got {count or 'none'} named {wanted!r}: {hint}"
            )


def label_sums(path: str, names: list[str], query: int) -> CorrelationSums:
    """Return sums over the labels in Parquet (file, folder or glob).

    The columns have the names of the oracle's attributes and hold bool, 0 and 1, or -1 and 1. Skips
    rows with a null. UserError where a column is missing.
    """
    sums = CorrelationSums.zero(len(names), 0)
    for store, name in _files(path):
        with damage_named(store.url(name)), store.parquet(name) as file:
            _expect_columns(file.schema_arrow.names, names, store.url(name))
            for batch in file.iter_batches(columns=names, batch_size=65536):
                table = pa.Table.from_batches([batch]).select(names)
                try:
                    columns = [
                        column.cast(pa.int8()).to_numpy().astype(np.float64)
                        for column in table.columns
                    ]
                except (pa.ArrowException, NotImplementedError) as error:
                    raise UserError(
                        "score.cd_labels: expected bool, 0 and 1, or -1 and 1 in"
                        f" {store.url(name)}, got {' '.join(str(error).split())[:200]}"
                    ) from None
                values = np.stack(columns, 1)
                values = values[~np.isnan(values).any(1)]
                sums += correlation.update(
                    (values > 0).astype(np.float64), query, np.zeros((len(values), 0))
                )
    return sums
