"""What reviewers agree on for each row: the verdict of more than half of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import pyarrow as pa

from storage.uri import Store
from storage.verdicts import read_verdicts


def read_reviewed(store: Store) -> dict[str, str | None]:
    """Return the verdict on each reviewed row by cf_id, as `majorities`."""
    return majorities(read_verdicts(store))


def majorities(verdicts: pa.Table) -> dict[str, str | None]:
    """Return the verdict that more than half of a row's reviewers gave, by cf_id; None in a tie."""
    return {name: majority(given) for name, given in by_row(verdicts).items()}


def by_row(verdicts: pa.Table) -> dict[str, dict[str, str]]:
    """Return the verdicts on each row by reviewer, by cf_id."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in verdicts.select(["cf_id", "reviewer", "verdict"]).to_pylist():
        found[row["cf_id"]][row["reviewer"]] = row["verdict"]
    return dict(found)


def majority(given: Mapping[str, str]) -> str | None:
    """Return the verdict of more than half of the reviewers; None where there is none."""
    for verdict, count in Counter(given.values()).most_common(1):
        return verdict if 2 * count > len(given) else None
    return None
