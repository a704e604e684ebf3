"""Another try of quarantined rows: answers of a shard's last revision are copied, the rest is done.

A try without a new answer is also a revision, so that the next one has its own notes of starts and
rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from storage.commit import commit_path, read_commit, read_committed
from storage.records import Commit, Shard
from storage.uri import Store


class Named(Protocol):
    """Anything with a row's id."""

    id: str


N = TypeVar("N", bound=Named)


@dataclass(frozen=True)
class Earlier:
    """A shard's last revision: its commit, its table, and the ids of the rows that it answered."""

    commit: Commit
    table: pa.Table
    ids: frozenset[str]


def earlier(store: Store, stage: str, shard: Shard) -> Earlier | None:
    """Return the content of the revision before the shard's.

    Returns None where the shard is done for the first time.
    """
    revision = shard.revision
    if not revision:
        return None
    commit = read_commit(store, commit_path(stage, shard.index, revision - 1))
    table = read_committed(store, commit)
    return Earlier(commit, table, frozenset(table["id"].to_pylist()))


def unanswered(rows: Iterable[N], before: Earlier | None) -> Iterator[N]:
    """Yield the rows that have no answer.

    Of each answered id only the first row is skipped, because a second one was quarantined.
    """
    taken: set[str] = set()
    for row in rows:
        if before is not None and row.id in before.ids and row.id not in taken:
            taken.add(row.id)
            continue
        yield row


def joined(before: Earlier | None, table: pa.Table) -> pa.Table:
    """Return the last revision's rows and the new ones, in the order of the input."""
    if before is None:
        return table
    kept = before.table
    for field in table.schema:  # missing where an older version began the run
        if field.name not in kept.column_names:
            kept = kept.append_column(field, pa.nulls(len(kept), field.type))
    both = pa.concat_tables([kept.select(table.schema.names).cast(table.schema), table])
    order = pc.sort_indices(
        both.select(["row", "k"]), sort_keys=[("row", "ascending"), ("k", "ascending")]
    )
    return both.take(order)
